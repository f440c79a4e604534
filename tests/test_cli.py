"""The command line as a script uses it: exit codes, one JSON document, clear errors."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from scheduler import cli
from scheduler.live.output import log_path
from scheduler.twin.profile_file import load_profile, profile_text

FAST = """
name: fast
engine: {kind: sim}
tenants: [{name: acme}]
load: [{tenant: acme, arrivals: at-once, count: 3}]
"""


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    code = cli.main(argv)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    path = tmp_path / "fast.yaml"
    path.write_text(FAST)
    return path


def test_json_is_one_document_on_stdout(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    code, out, _ = run(capsys, "run", str(fast), "--json")
    document = json.loads(out)
    assert code == 0
    assert document["requests"]["finished"] == 3
    assert (document["schema"], document["clock"], document["engine"]) == (1, "virtual", "sim")
    assert "simulated" in document["engine_detail"]


def test_the_oracle_needs_no_word_about_the_clock(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    fast.write_text(FAST + "estimator: {kind: oracle}\n")
    assert run(capsys, "check", str(fast))[0] == 0
    assert run(capsys, "run", str(fast))[0] == 0
    code, _, err = run(capsys, "run", str(fast), "--clock", "real")
    assert code == 2
    assert "true lengths" in err


def test_check_knows_a_config_of_serve(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    config = (
        f"name: shop\ntenants: [{{name: acme}}]\nkeys: {{acme: env:ACME_KEY}}\njournal: {fast.parent}/j\n"
    )
    fast.write_text(config)
    assert run(capsys, "check", str(fast))[:2] == (0, f"{fast}: ok (tenants: 1, streams: 0)\n")
    fast.write_text(config.replace("{acme:", "{acne:"))
    code, _, err = run(capsys, "check", str(fast))
    assert code == 2
    assert "keys.acne: unknown tenant; allowed: acme; did you mean 'acme'?" in err


def test_check_looks_at_what_the_engine_takes(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    fast.write_text(FAST.replace("{kind: sim}", "{kind: sim, args: {max_model_len: -3}}"))
    code, _, err = run(capsys, "check", str(fast))
    assert code == 2
    assert "-3 is no number of tokens above 0" in err


def test_real_clock_on_the_simulated_engine(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    fast.write_text(FAST + "speed: 50\n")
    code, out, _ = run(capsys, "run", str(fast), "--clock", "real", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["clock"] == "real"
    assert document["requests"]["finished"] == 3


@pytest.mark.parametrize(
    "options", [(), ("--engine", "sim", "--policy", "aging rate=2", "--seed", "-7", "--clock", "real")]
)
def test_a_run_knows_how_to_begin_it_again(
    capsys: pytest.CaptureFixture[str], fast: Path, options: tuple[str, ...]
) -> None:
    fast.write_text(FAST + "speed: 50\n")
    out = str(fast.parent / "run")
    assert run(capsys, "run", str(fast), "--out", out, *options)[0] == 0
    document = json.loads((fast.parent / "run" / "run.json").read_text())
    assert document["invocation"] == ["run", str(fast), *options]


def test_a_missed_expectation_exits_1_and_says_which(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    fast.write_text(
        FAST + "expect: [requests.finished == 4, requests.failed == 0, failure == lost, paper == true]\n"
    )
    code, out, err = run(capsys, "run", str(fast))
    assert code == 1
    assert "expect     1 of 4 met" in out
    assert "requests.finished == 4 (it is 3)" in err
    assert "failure == lost (it is null)" in err, "in the words of run.json"
    assert "paper == true (it is false)" in err


def test_a_run_tells_why_requests_were_rejected(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    assert "rejected" not in run(capsys, "run", str(fast))[1]
    fast.write_text(FAST + "limits: {max_queued: 1}\n")
    _, out, _ = run(capsys, "run", str(fast))
    assert "1 finished, 2 rejected\nrejected   2 queue_full\n" in out


def test_a_folder_may_be_used_again_which_is_told(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    folder = fast.parent / "run"
    assert "replaced" not in run(capsys, "run", str(fast), "--out", str(folder))[2]
    (folder / "engine.log").write_text("of another engine")
    code, out, err = run(capsys, "run", str(fast), "--out", str(folder), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "run.json").read_text())
    assert f"{folder}: the run that is recorded there is replaced" in err
    assert not (folder / "engine.log").exists()


@pytest.mark.parametrize(
    ("argv", "unneeded"),
    [
        (("--version",), {"asyncio", "numpy", "pydantic", "rich", "yaml"}),
        (("policies",), {"asyncio", "numpy", "pydantic", "rich", "yaml"}),
        (("check", "demo"), {"asyncio", "numpy", "rich"}),
    ],
)
def test_a_quick_command_does_not_wait_for_what_it_does_not_use(
    argv: tuple[str, ...], unneeded: set[str]
) -> None:
    tell = "import atexit, sys; atexit.register(lambda: print(*sys.modules))"
    code = f"{tell}; from scheduler.cli import main; main({argv})"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "scheduler.cli" in told.split()
    assert not unneeded & set(told.split())


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("run", "nowhere.yaml"), "no shipped scenario"),
        (("run", "demo", "--policy", "sfj"), "did you mean 'sjf'"),
        (("run", "demo", "--policy", "aging rate=-1"), "0 or more"),
        (("run", "demo", "--engine", "vllm", "--clock", "virtual"), "virtual"),
        (("run", "demo", "--record-text"), "needs --out"),
        (("run", "demo", "--engine", "vllm", "--clock", "real"), "needs a model"),
        (("check", "nowhere"), "allowed"),
        (("models", "prepare", "nothing"), "smollm2"),
        (("bench", "estimate", "--lengths", "nowhere.jsonl"), "cannot be read"),
        (("bench", "estimate", "--lengths", __file__), "line 1: not a JSON object: Extra data"),
        (("bench", "policies", "--trace", "nowhere.csv"), "no such file"),
        (("bench", "policies", "--trace", __file__), "test_cli.py"),
    ],
)
def test_bad_usage_exits_2(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], says: str) -> None:
    code, out, err = run(capsys, *argv)
    assert code == 2
    assert says in err
    assert out == ""


def test_a_model_folder_without_weights_exits_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    code, _, err = run(capsys, "run", "cpu-real", "--engine", "vllm", "--model", str(tmp_path))
    assert code == 2
    assert "weights" in err


def test_a_recorded_run_is_decided_again(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    folder = str(fast.parent / "run")
    assert run(capsys, "run", str(fast), "--out", folder)[0] == 0
    code, out, _ = run(capsys, "replay", folder, "--check")
    assert (code, out) == (0, f"{folder}: 3 dispatches, all the same again\n")
    log = fast.parent / "run" / "events.jsonl"
    log.write_text(log.read_text().replace('"r0"', r'"\u001b[2J"'))
    code, out, _ = run(capsys, "replay", folder, "--check")
    assert code == 0  # only a name
    log.write_text(log.read_text().replace('"e":"dispatched"', '"e":"aborting"', 1))
    code, out, _ = run(capsys, "replay", folder, "--check")
    assert code == 1
    assert r"\x1b[2J" in out
    assert "\x1b" not in out
    code, _, err = run(capsys, "replay", str(fast.parent), "--check")
    assert code == 2
    assert "no run folder" in err


@pytest.mark.parametrize(
    ("kind", "field", "text"),
    [
        ("dispatched", "id", None),
        ("queued", "id", "[]"),
        ("first_token", "id", "{}"),
        ("finished", "id", None),
        ("queued", "tenant", "[]"),
        ("queued", "tier", '"gold"'),
        ("queued", "prompt_tokens", "1e400"),
        ("queued", "max_tokens", "1e400"),
        ("queued", "input_tokens", "1e400"),
        ("finished", "output_tokens", "1e400"),
        ("finished", "prompt_tokens", None),
        ("finished", "prompt_tokens", "{}"),
        *[
            (kind, field, "9" * digits)
            for kind, field in (("queued", "prompt_tokens"), ("finished", "output_tokens"), ("queued", "t"))
            for digits in (19, 400, 5000)
        ],
    ],
)
def test_a_malformed_log_is_no_other_decision(
    capsys: pytest.CaptureFixture[str], fast: Path, kind: str, field: str, text: str | None
) -> None:
    folder = fast.parent / "run"
    assert run(capsys, "run", str(fast), "--out", str(folder))[0] == 0
    lines = (folder / "events.jsonl").read_text().splitlines()
    number = next(n for n, line in enumerate(lines) if json.loads(line)["e"] == kind)
    event = json.loads(lines[number])
    del event[field]
    line = json.dumps(event)
    lines[number] = line if text is None else f'{line[:-1]}, "{field}": {text}}}'
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = run(capsys, "replay", str(folder), "--check")
    assert (code, out) == (2, "")
    assert f"events.jsonl:{number + 1}: " in err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_hears_nothing_of_it(unbuffered: str) -> None:
    command = [sys.executable, "-m", "scheduler.cli", "scenarios"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_full_disk_is_told_once() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "scheduler.cli", "policies"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "driftsched: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("closed", "argv", "code", "told"),
    [
        ("<&- >&- 2>&-", ("run", "{}/fast.yaml", "--out", "{}/run"), 0, ""),
        (">&-", ("run", "{}/fast.yaml", "--out", "/dev/null/run"), 2, "Not a directory: '/dev/null/run'\n"),
        ("<&-", ("live",), 2, "for scripts there is `driftsched run`\n"),
    ],
)
def test_streams_may_be_closed(fast: Path, closed: str, argv: tuple[str, ...], code: int, told: str) -> None:
    command = [sys.executable, "-m", "scheduler.cli", *(part.format(fast.parent) for part in argv)]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command], stderr=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(told)
    assert "Traceback" not in done.stderr


def test_what_a_terminal_cannot_show_is_spelled_out(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    fast.write_text(FAST + "timeline: [{at: 0s, policy: sjf}]\n")
    command = [sys.executable, "-m", "scheduler.cli", "run", str(fast)]
    done = subprocess.run(command, capture_output=True, env=env, check=False)
    assert done.returncode == 0
    assert rb"fifo \u2192 sjf" in done.stdout
    fast.write_text(FAST.replace("name: acme", r'name: "ac\e[31mme"'))
    code, _, err = run(capsys, "check", str(fast))
    assert code == 2
    assert r"ac\x1b[31mme" in err
    assert "\x1b" not in err


def test_a_files_own_name_is_no_escape(capsys: pytest.CaptureFixture[str], fast: Path) -> None:
    hostile = fast.rename(fast.parent / "\x1b[31mred.yaml")
    code, out, _ = run(capsys, "check", str(hostile))
    assert code == 0
    assert r"\x1b[31mred.yaml: ok" in out
    assert "\x1b" not in out


def test_a_name_is_no_markup_and_a_detail_no_escape(fast: Path) -> None:
    """On a terminal, where the progress bar stands."""
    profile = replace(load_profile("l4", "qwen1.5-1.8b-chat"), detail="\x1b[31mred")
    (fast.parent / "gpu.yaml").write_text(profile_text(profile))
    fast.write_text(FAST.replace("fast", '"x[/]"').replace("{kind: sim}", "{kind: sim, gpu: gpu.yaml}"))
    reader, tty = pty.openpty()
    command = [sys.executable, "-m", "scheduler.cli", "run", str(fast)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=tty, text=True, check=False)
    os.close(tty)
    drawn = os.read(reader, 65536).decode()
    os.close(reader)
    assert done.returncode == 0, drawn
    assert "x[/] in virtual time" in drawn
    assert "on \\x1b[31mred" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(("argv", "code"), [(("run", "nowhere"), 2), (("run", "FAST"), 1)])
def test_the_exit_code_says_what_nobody_reads(fast: Path, argv: tuple[str, ...], code: int) -> None:
    fast.write_text(FAST + "expect: [requests.finished == 4]\n")
    reader, writer = os.pipe()
    os.close(reader)
    command = [
        sys.executable,
        "-m",
        "scheduler.cli",
        *(str(fast) if part == "FAST" else part for part in argv),
    ]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=writer, check=False)
    os.close(writer)
    assert done.returncode == code


def test_each_run_of_an_engine_has_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    names = [f"20260101-0000{second:02}-7.log" for second in range(25)]
    for name in ("notes.txt", *names):
        (tmp_path / "driftsched").mkdir(exist_ok=True)
        (tmp_path / "driftsched" / name).touch()
    fresh = log_path()
    assert not fresh.exists()
    assert sorted(path.name for path in fresh.parent.iterdir()) == [*names[-19:], "notes.txt"]


def test_without_a_command_it_is_live(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys) == run(capsys, "live")


@pytest.mark.parametrize(
    "argv",
    [
        ("live", "--speed", "x"),
        ("replay", "d", "--speed", "0"),
        ("bench", "paper", "--seeds", "1.5"),
        ("run", "demo", "--seed", "9" * 19),  # a run folder with it could not be read back
    ],
)
def test_a_bad_number_says_what_is_needed(capsys: pytest.CaptureFixture[str], argv: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert re.search(
        f"'{argv[-1]}': a .*number (above 0|of at most 18 digits) is needed", capsys.readouterr().err
    )


@pytest.mark.parametrize("out", ["", __file__])
def test_a_run_goes_into_a_folder(capsys: pytest.CaptureFixture[str], out: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "demo", "--out", out])
    assert f"{out!r} is no folder, nor the name of a new one" in capsys.readouterr().err


def test_live_needs_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "live", "demo")
    assert code == 2
    assert "terminal" in err


def test_live_needs_more_than_a_dumb_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert run(capsys, "live")[0] == 2
    assert run(capsys, "replay", "nowhere")[2].endswith("TERM is dumb\n")


def test_live_offers_the_files_beside_its_own(fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_live = Mock(return_value=0)
    monkeypatch.setattr("scheduler.cli._on_terminal", lambda *_: True)
    monkeypatch.setattr("driftui.live.run_live", run_live)
    assert cli.main(["live", str(fast)]) == 0
    assert cli.main(["live", "demo"]) == 0
    assert [call.kwargs["files"] for call in run_live.mock_calls] == [fast.parent, None]


@pytest.mark.parametrize("name", ["policies", "scenarios"])
def test_lists(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name)
    assert code == 0
    assert ("sjf" if name == "policies" else "demo") in out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--help"], ["--version"]):
        with pytest.raises(SystemExit) as exit_:
            cli.main(argv)
        assert exit_.value.code == 0
    assert "driftsched" in capsys.readouterr().out


@pytest.mark.parametrize("clock", ["virtual", "real"])
def test_three_crashes_within_a_minute_stop_the_engine(
    clock: str, capsys: pytest.CaptureFixture[str], fast: Path
) -> None:
    """It is away for 10 s each time, and crashed again soon after; what it never ran has failed."""
    fast.write_text(
        FAST.replace("at-once, count: 3", "{poisson: 5}, for: 60s")
        + "speed: 100\ntimeline:\n"
        + "".join(f"  - {{at: {at_s}s, fault: {{engine: crash}}}}\n" for at_s in range(10, 60, 4))
    )
    code, out, err = run(capsys, "run", str(fast), "--clock", clock, "--json")
    document = json.loads(out)
    counts = document["requests"]
    assert code == 3
    assert document["failure"] in err
    assert counts["submitted"] == counts["finished"] + counts["failed"]
    assert counts["finished"] > 10
    assert counts["failed"] > 0


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize(
    ("clock", "count", "name"),
    [("real", 500, signal.SIGINT), ("real", 500, signal.SIGHUP), ("virtual", 200_000, signal.SIGTERM)],
)
def test_a_signal_ends_it_cleanly_and_what_was_done_is_written(
    clock: str, count: int, name: signal.Signals, tmp_path: Path
) -> None:
    scenario = tmp_path / "long.yaml"
    scenario.write_text(FAST.replace("count: 3", f"count: {count}"))
    folder = tmp_path / "run"
    argv = [sys.executable, "-m", "scheduler.cli", "run", str(scenario), "--clock", clock, "--json"]
    with subprocess.Popen(
        [*argv, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    ) as process:
        assert process.stdout is not None
        for _ in range(2000):
            if (folder / "events.jsonl").exists():
                break  # it has begun
            time.sleep(0.01)
        else:
            process.kill()
            pytest.fail("it has not begun")
        process.send_signal(name)
        out = process.stdout.read()
        assert process.wait(30) == 130
    document = json.loads(out)
    assert document["interrupted"] is True
    assert json.loads((folder / "run.json").read_text()) == document
    counts = document["requests"]
    assert counts["submitted"] == count == sum(counts[k] for k in ("finished", "failed", "cancelled"))


def test_a_full_disk_ends_the_recording_and_not_the_run(tmp_path: Path, fast: Path) -> None:
    limited = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh"]  # files of 512 bytes; pipes are no files
    command = [
        sys.executable,
        "-m",
        "scheduler.cli",
        "run",
        str(fast),
        "--json",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run([*limited, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert json.loads(done.stdout)["requests"]["finished"] == 3
    assert "File too large; recording has stopped" in done.stderr
