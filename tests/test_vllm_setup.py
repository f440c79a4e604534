"""vLLM's arguments, environment and preflight; none of it needs vLLM, most of it is how it fails."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import AsyncMock, Mock

import pytest

from scheduler.engines import vllm_setup
from scheduler.engines.engine import EngineConfigError
from scheduler.engines.vllm import VllmEngine
from scheduler.engines.vllm_setup import check_args, engine_args, engine_env, environment

GIB = 1 << 30


class TestArguments:
    def test_the_papers_engine_on_a_gpu(self) -> None:
        paper = {
            "dtype": "float16",
            "max_model_len": 2048,
            "enforce_eager": True,
            "gpu_memory_utilization": 0.70,
        }
        assert engine_args("Qwen/Qwen1.5-1.8B-Chat", 32, paper, "cuda") == paper | {
            "model": "Qwen/Qwen1.5-1.8B-Chat",
            "max_num_seqs": 32,
            "scheduling_policy": "fcfs",
            "stream_interval": vllm_setup.STREAM_INTERVAL,
            "disable_log_stats": True,
            "enable_logging_iteration_details": True,
        }

    def test_a_cpu_needs_more(self) -> None:
        built = engine_args("folder", 16, {}, "cpu", free_memory=8 * GIB)
        assert built["dtype"] == "bfloat16"
        assert built["enforce_eager"] is True
        assert built["distributed_executor_backend"] == "uni"
        assert built["kv_cache_memory_bytes"] == 2 * GIB
        assert built["scheduling_policy"] == "fcfs"

    @pytest.mark.parametrize(("free", "kv"), [(64 * GIB, 4 * GIB), (GIB // 2, GIB // 4)])
    def test_the_kv_cache_of_a_cpu_is_bounded(self, free: int, kv: int) -> None:
        assert engine_args("folder", 16, {}, "cpu", free_memory=free)["kv_cache_memory_bytes"] == kv

    def test_a_step_holds_at_least_the_batch(self) -> None:
        assert engine_args("folder", 600, {}, "cpu", free_memory=GIB)["max_num_batched_tokens"] == 600

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_given_arguments_win(self, device: str) -> None:
        assert engine_args("m", 4, {"stream_interval": 1}, device)["stream_interval"] == 1

    def test_unknown_argument(self) -> None:
        with pytest.raises(EngineConfigError, match=r"'max_modle_len'.*did you mean 'max_model_len'"):
            check_args({"max_modle_len": 1}, {"max_model_len", "dtype"})
        with pytest.raises(EngineConfigError, match="fields of AsyncEngineArgs"):
            check_args({"zzz": 1}, {"max_model_len", "dtype"})

    @pytest.mark.parametrize("name", ["model", "max_num_seqs"])
    def test_arguments_that_have_a_place_of_their_own(self, name: str) -> None:
        with pytest.raises(EngineConfigError, match="not here"):
            check_args({name: 1}, {name})


class TestEnvironment:
    def test_children_are_spawned_and_a_cpu_leaves_the_loop_its_core(self) -> None:
        assert engine_env("cuda", 0, {}) == {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
        assert engine_env("cpu", 3, {}) == {
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "3",
        }
        assert engine_env("cpu", 3, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"

    def test_is_lent_and_taken_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "")
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.delenv("LD_PRELOAD", raising=False)
        before = dict(os.environ)
        with environment({"OMP_NUM_THREADS": "1"}):
            assert os.environ["OMP_NUM_THREADS"] == "1"
            assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ  # set but empty, vLLM fails
            os.environ["LD_PRELOAD"] = "libgomp.so"  # as vLLM does
        assert dict(os.environ) == before

    def test_a_size_that_the_user_has_set_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
        with environment({}):
            assert os.environ["VLLM_CPU_KVCACHE_SPACE"] == "2"


class TestImport:
    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "vllm.v1.engine.async_llm", raising=False)

    def test_no_vllm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(EngineConfigError, match=r"pip install '\.\[cpu\]'"):
            vllm_setup.import_vllm()

    @pytest.fixture
    def broken_torchvision(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        def broken(name: str) -> None:
            raise RuntimeError("operator torchvision::nms does not exist\nand a stack trace")

        torch = ModuleType("torch")
        torch.version = SimpleNamespace(cuda=None, hip=None)  # type: ignore[attr-defined]
        present = ("vllm", "torchvision", "torchcodec")
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in present or None)
        monkeypatch.setattr(importlib, "import_module", broken)
        return torch

    def test_broken_torchvision_beside_a_cpu_torch(self, broken_torchvision: ModuleType) -> None:
        with pytest.raises(EngineConfigError) as caught:
            vllm_setup.import_vllm()
        assert "torchvision is broken" in str(caught.value)
        assert "(operator torchvision::nms does not exist)" in str(caught.value)
        assert "pip uninstall -y torchvision torchcodec`" in str(caught.value)

    def test_beside_a_gpu_torch_it_is_vllms_own_choice(self, broken_torchvision: ModuleType) -> None:
        broken_torchvision.version.cuda = "13.0"
        vllm_setup.check_companions()

    def test_vllm_itself_is_broken(
        self, broken_torchvision: ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(vllm_setup, "_COMPANIONS", ())
        with pytest.raises(EngineConfigError, match="vLLM is installed but does not import"):
            vllm_setup.import_vllm()


def test_a_child_on_the_leash_dies_with_its_parent(tmp_path: Path) -> None:
    """kill -9 of the parent, while the child sits in a sleep that nothing else would end."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, os, time
            from scheduler.engines.vllm_child import die_with_parent

            def child():
                die_with_parent()
                os.write(1, b"%d\\n" % os.getpid())
                time.sleep(600)

            if __name__ == "__main__":
                multiprocessing.get_context("spawn").Process(target=child).start()
                time.sleep(600)
            """
        )
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert int(parent.stdout.readline()) > 0  # the child is up, and holds our pipe
        parent.kill()
        assert parent.stdout.read() == b""  # returns when the last process that holds it has ended


async def test_a_chat_template_that_refuses_any_question_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exceptions = ModuleType("exceptions")
    monkeypatch.setattr(exceptions, "EngineDeadError", RuntimeError, raising=False)
    monkeypatch.setitem(sys.modules, "vllm.v1.engine.exceptions", exceptions)
    engine = VllmEngine("model", max_num_seqs=1)
    monkeypatch.setattr(engine, "_build", lambda: Mock(get_supported_tasks=AsyncMock()))
    monkeypatch.setattr(engine, "_render", AsyncMock(side_effect=ValueError("the template refuses it")))
    with pytest.raises(EngineConfigError, match="the template refuses it"):
        await engine.start()
