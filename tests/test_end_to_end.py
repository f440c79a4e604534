"""A whole run with the real engine, as a user starts it: command line, vLLM, a switch, the run folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scheduler.record.redo import Redone, check

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.usefixtures("real_engine")]

SCENARIO = """
name: end-to-end
engine: {kind: vllm, model: smollm2, capacity: 2, args: {max_model_len: 512}}
tenants:
  - {name: acme, tier: premium, weight: 5}
  - {name: lab, tier: batch, weight: 2}
load:
  - {tenant: {acme: 1, lab: 1}, arrivals: at-once, count: COUNT, max_tokens: 24}
timeline:
  - {at: 100ms, policy: sjf}
expect:
  - requests.finished == COUNT
  - switches.0.queued > 0
"""


def command(folder: Path, count: int, *more: str) -> list[str]:
    scenario = folder / "end-to-end.yaml"
    scenario.write_text(SCENARIO.replace("COUNT", str(count)))
    return [sys.executable, "-m", "scheduler.cli", "run", str(scenario), *more]


def test_a_run_on_the_real_engine(tmp_path: Path) -> None:
    argv = command(tmp_path, 10, "--json", "--out", str(tmp_path / "run"))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)  # and nothing else is on stdout
    assert document == json.loads((tmp_path / "run" / "run.json").read_text())
    assert document["engine"] == "vllm"
    assert "simulated" not in document["engine_detail"]
    assert document["capacity"] == 4
    assert document["requests"]["finished"] == document["requests"]["submitted"] == 10
    assert sum(document["finish"].values()) == 10
    assert 0 < document["tokens"]["output"] <= 240
    assert document["switches"][0]["to"] == "sjf"
    for metric in ("e2e", "ttft", "engine_ttft", "queue_wait", "tpot", "itl"):
        assert document["latency_s"]["all"][metric]["p99"] > 0, metric
    assert document["loop_lag_ms"]["p99"] > 0
    assert document["estimate"]["bias"]
    assert "Traceback" not in done.stderr

    assert check(tmp_path / "run") == Redone(10), "its log, decided again in virtual time"


def test_no_child_outlives_a_kill(tmp_path: Path) -> None:
    argv = command(tmp_path, 500)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if "engine started" in line:
                break
        children = psutil.Process(run.pid).children(recursive=True)
        assert children
        run.send_signal(signal.SIGKILL)
        run.wait(60)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
