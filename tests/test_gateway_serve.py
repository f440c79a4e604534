"""``driftsched serve`` as a process: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
from gateway_kit import ACME, ENVIRON, OPERATOR, bearer, completion

from scheduler.serve import FILES

CONFIG = """
name: shop
speed: 50
tenants: [{name: acme}]
keys: {acme: env:ACME}
operator: env:OPERATOR
"""


@contextmanager
def serving(config: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The process, and what it says."""
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", *more],
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRON},
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            yield process, process.stderr
        finally:
            process.kill()


def asked(url: str) -> urllib.request.Request:
    """A client's request to the server there."""
    body = json.dumps(completion(prompt="a secret prompt")).encode()
    headers = {"Content-Type": "application/json", **bearer(ACME)}
    return urllib.request.Request(f"{url}/v1/completions", body, headers)


def test_a_recorded_server_from_ready_to_sigterm(tmp_path: Path) -> None:
    config, folder = tmp_path / "serve.yaml", tmp_path / "run"
    config.write_text(CONFIG + "expect: [requests.failed == 0, requests.finished == 2]\n")
    with serving(config, "--record", str(folder), "--journal", str(tmp_path / "jobs")) as (process, stderr):
        said = ""
        while "ready:" not in said:
            line = stderr.readline()
            assert line, said
            said += line
        address = re.search(r"http://\S+", said)
        assert address is not None
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert soft >= min(FILES, hard), "each client that waits is an open file"
        with urllib.request.urlopen(asked(address[0].rstrip(","))) as answer:
            text = json.load(answer)["choices"][0]["text"]
        process.send_signal(signal.SIGTERM)
        said += stderr.read()
        assert process.wait(10) == 0
    missed = "not met: requests.finished == 2 (it is 1)"
    assert said.endswith(f"stopping\nengine: engine stopped\nrecorded in {folder}\n{missed}\nstopped\n")
    assert "not judged" not in said
    assert "load has ended" not in said, "clients may always come"
    document = json.loads((folder / "run.json").read_text())
    assert document["requests"]["submitted"] == document["requests"]["finished"] == 1
    assert document["latency_s"]["tenants"]["acme"]["e2e"]["p50"] > 0
    written = said + "".join(path.read_text() for path in folder.iterdir())
    for private in ("secret", ACME, text.strip()):
        assert private not in written


def test_expectations_that_nobody_judges_are_told(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG + "expect: [requests.failed == 0]\n")
    with serving(config) as (process, stderr):
        stderr.readline()
        assert stderr.readline() == "`expect` of the config is not judged: that takes --record DIR\n"
        process.send_signal(signal.SIGTERM)
        assert "not met" not in stderr.read()
        assert process.wait(10) == 0


def lost_reader(how: str) -> tuple[int, int]:
    """A pipe to write to, and its other end: closed, or open and never read."""
    reader, writer = os.pipe()
    if how == "closed":
        os.close(reader)
        return writer, os.open(os.devnull, os.O_RDONLY)
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(1024))
    os.set_blocking(writer, True)
    return writer, reader


def view_of(port: int) -> dict[str, Any]:
    """What the operator sees. Raises OSError while the server comes up."""
    ask = urllib.request.Request(f"http://127.0.0.1:{port}/control/view", headers=bearer(OPERATOR))
    with urllib.request.urlopen(ask) as answer:
        return dict(json.load(answer))


def wait_past(port: int, run_s: float) -> None:
    """Until the run's clock shows more than this; 30 s at most."""
    until_s = time.monotonic() + 30
    while time.monotonic() < until_s:
        with suppress(OSError):
            if view_of(port)["view"]["snapshot"]["now"] > run_s:
                return
        time.sleep(0.02)
    pytest.fail("the server did not come up")


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize(("reader", "ending"), [("closed", signal.SIGHUP), ("full", signal.SIGTERM)])
def test_a_crash_is_survived_though_nobody_reads_of_it(
    tmp_path: Path, reader: str, ending: signal.Signals
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(CONFIG + "timeline: [{at: 1s, fault: {engine: crash}}]\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config)]
    writer, other_end = lost_reader(reader)
    with subprocess.Popen(
        [*command, "--listen", f"127.0.0.1:{port}", "--record", str(tmp_path / "run")],
        stderr=writer,
        env={**os.environ, **ENVIRON},
    ) as process:
        try:
            wait_past(port, 1.0)
            with urllib.request.urlopen(asked(f"http://127.0.0.1:{port}")) as answer:
                assert answer.status == 200
            told = " / ".join(notice["text"] for notice in view_of(port)["notices"])
            assert "engine lost with 0 requests in flight" in told
            assert "engine is back after" in told
            process.send_signal(ending)
            assert process.wait(20) == 0
        finally:
            process.kill()
            os.close(writer)
            os.close(other_end)
    assert (tmp_path / "run" / "run.json").is_file()


def test_a_server_that_cannot_listen_leaves_the_run_in_its_folder_alone(tmp_path: Path) -> None:
    for name in ("run.json", "events.jsonl"):
        (tmp_path / name).write_text("of an earlier run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "scheduler.cli", "serve", "--record", str(tmp_path)]
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [*command, "--listen", address], capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert f"cannot listen on {address}" in done.stderr
    assert [(tmp_path / name).read_text() for name in ("run.json", "events.jsonl")] == [
        "of an earlier run"
    ] * 2
