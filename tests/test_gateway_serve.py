"""``driftsched serve`` as a process: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from gateway_kit import ACME, ENVIRON, bearer, completion

from scheduler.serve import FILES

CONFIG = """
name: shop
speed: 50
tenants: [{name: acme}]
keys: {acme: env:ACME}
operator: env:OPERATOR
"""


def test_a_recorded_server_from_ready_to_sigterm(tmp_path: Path) -> None:
    config, folder = tmp_path / "serve.yaml", tmp_path / "run"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "scheduler.cli", "serve", "--config", str(config)]
    with subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0", "--record", str(folder), "--journal", str(tmp_path / "jobs")],
        stderr=subprocess.PIPE,
        env={**os.environ, **ENVIRON},
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while "ready:" not in said:
                line = process.stderr.readline()
                assert line, said
                said += line
            address = re.search(r"http://\S+", said)
            assert address is not None
            post = urllib.request.Request(
                address[0].rstrip(",") + "/v1/completions",
                json.dumps(completion(prompt="a secret prompt")).encode(),
                {"Content-Type": "application/json", **bearer(ACME)},
            )
            soft, hard = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
            assert soft >= min(FILES, hard), "each client that waits is an open file"
            with urllib.request.urlopen(post) as answer:
                text = json.load(answer)["choices"][0]["text"]
            process.send_signal(signal.SIGTERM)
            said += process.stderr.read()
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert said.endswith(f"stopping\nengine: engine stopped\nrecorded in {folder}\nstopped\n")
    document = json.loads((folder / "run.json").read_text())
    assert document["requests"]["submitted"] == document["requests"]["finished"] == 1
    assert document["latency_s"]["tenants"]["acme"]["e2e"]["p50"] > 0
    written = said + "".join(path.read_text() for path in folder.iterdir())
    for private in ("secret", ACME, text.strip()):
        assert private not in written
