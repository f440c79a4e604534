"""Turn a GGUF file into the folder that vLLM loads: ``python -m scheduler.engines.vllm_convert GGUF FOLDER``.

Prints one line per step, ``SHARE what is being done``; a traceback on stderr and exit 1 when it fails.
Run by ``models.prepare``; imports torch, so never imported by the program itself.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    """Write config.json, weights as bfloat16 safetensors, and the tokenizer with its chat template."""
    print("0.1 loading torch and transformers", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("0.3 reading the weights", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    print("0.5 writing safetensors", flush=True)
    model.save_pretrained(folder)
    print("0.6 converting the tokenizer", flush=True)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything needed is in the file; never ask the network
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
