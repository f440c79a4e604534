"""What must be true before vLLM runs: it imports, its environment is right, its arguments are named.

Call ``preflight`` on the main thread before the screen opens: importing takes seconds, and Python's
resource tracker cannot be spawned once Textual owns the terminal's file descriptors.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import multiprocessing.resource_tracker
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil

from scheduler.core.text import hint
from scheduler.engines.engine import EngineConfigError
from scheduler.engines.models import resolve

STREAM_INTERVAL = 4
"""Tokens between two outputs of one stream, after the first, which comes at once.

An output costs the event loop about as much as everything else per token together. Four to an output
takes most of that away, and a stall of a single step still shows as a gap between two outputs.
"""

_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
_CLIENT = "vllm.v1.engine.async_llm"
_GIB = 1 << 30


def preflight(model: str) -> str:
    """Check the model and import vLLM; return what vLLM is given as model. Raises EngineConfigError."""
    resolved = resolve(model)
    import_vllm()
    multiprocessing.resource_tracker.ensure_running()
    return resolved


def import_vllm() -> None:
    """Import vLLM, or raise an EngineConfigError that names the cure."""
    if _CLIENT in sys.modules:
        return
    if importlib.util.find_spec("vllm") is None:
        raise EngineConfigError(
            "vLLM is not installed: in DriftSched's source folder run `pip install '.[vllm]'` for a GPU, "
            "`pip install '.[cpu]'` for a CPU, or take --engine sim"
        )
    for name, value in quiet_env().items():
        os.environ.setdefault(name, value)
    check_companions()
    try:
        importlib.import_module(_CLIENT)
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineConfigError(f"vLLM is installed but does not import: {_first_line(error)}") from error
    # A heap frozen against long collections (gc.freeze) makes triton's bindings report leaks at exit.
    atexit.register(gc.unfreeze)


def quiet_env() -> dict[str, str]:
    """Environment that keeps vLLM from chatting, to the log and to the network; set before its import."""
    return {
        "VLLM_LOGGING_LEVEL": "ERROR",  # its warnings are about what we have chosen on purpose
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # stdout may be somebody's JSON
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def check_companions() -> None:
    """Refuse broken builds of torch's companions beside a CPU torch: vLLM would die of importing them."""
    present = [name for name in _COMPANIONS if importlib.util.find_spec(name) is not None]
    if not present:
        return
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    for name in present:
        try:
            importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:
            raise EngineConfigError(
                f"{name} is broken beside the CPU build of torch, and vLLM would die of it "
                f"({_first_line(error)}): run `{sys.executable} -m pip uninstall -y {' '.join(present)}`"
            ) from error


def engine_args(
    model: str, max_num_seqs: int, args: Mapping[str, Any], device: str, free_memory: int | None = None
) -> dict[str, Any]:
    """Keyword arguments for ``AsyncEngineArgs`` on ``device``, "cuda" or "cpu"; ``args`` win.

    ``free_memory`` (bytes, default: asked of the machine) bounds the KV cache of a CPU.
    """
    built: dict[str, Any] = {
        "model": model,
        "max_num_seqs": max_num_seqs,
        "scheduling_policy": "fcfs",  # the order is ours: what vLLM is given runs next
        "stream_interval": STREAM_INTERVAL,
        "disable_log_stats": True,  # no lines in the log; our own stat logger switches the numbers on
        "enable_logging_iteration_details": True,  # to it: what each step computed
    }
    if device == "cpu":
        free = psutil.virtual_memory().available if free_memory is None else free_memory
        built |= {
            "dtype": "bfloat16",  # float32 costs twice
            "max_model_len": 2048,
            "enforce_eager": True,  # compiling takes longer than most runs
            # With EngineCore a child anyway, a worker below it would double the time to start.
            "distributed_executor_backend": "uni",
            # An explicit size: the default is a share of *all* memory and fails where that is in use.
            "kv_cache_memory_bytes": max(_GIB // 4, min(4 * _GIB, free // 4)),
            # The cost of a prefill token rises above 512 of them in a step, and decodes wait meanwhile.
            "max_num_batched_tokens": max(512, max_num_seqs),
        }
    return built | dict(args)


def check_args(args: Mapping[str, Any], allowed: set[str]) -> None:
    """Refuse engine arguments that vLLM does not have, and those that are not the scenario's to set."""
    for name in args:
        if name in ("model", "max_num_seqs"):
            cure = "--model" if name == "model" else "the engine's capacity"
            raise EngineConfigError(f"engine args: {name!r} is set by {cure}, not here")
        if name not in allowed:
            cure = hint(name, allowed) or "; allowed are the fields of AsyncEngineArgs"
            raise EngineConfigError(f"engine args: vLLM has no argument {name!r}{cure}")


def engine_env(device: str, threads: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Environment for building the engine and for its children; what the user has set wins."""
    env = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}  # never fork a process that has threads and a screen
    if device == "cpu":
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else a CPU engine refuses the "uni" executor
        env["OMP_NUM_THREADS"] = environ.get("OMP_NUM_THREADS") or str(threads)
    return env


def omp_threads() -> int:
    """Compute threads for a CPU engine: the physical cores that we may use, less one for the event loop."""
    from vllm.utils.torch_utils import available_cpu_count

    usable: int = available_cpu_count()
    physical = psutil.cpu_count(logical=False) or usable
    return max(1, min(usable, physical) - 1)


@contextmanager
def environment(env: Mapping[str, str]) -> Iterator[None]:
    """Lend ``env`` to the process; afterwards the environment is as before, whatever vLLM has put there.

    vLLM sets LD_PRELOAD and more for its children; none of ours should inherit that.
    """
    before = dict(os.environ)
    # Set but empty, this one is taken for a size and fails.
    if not os.environ.get("VLLM_CPU_KVCACHE_SPACE", "unset"):
        del os.environ["VLLM_CPU_KVCACHE_SPACE"]
    os.environ.update(env)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
