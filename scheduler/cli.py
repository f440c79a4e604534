"""The one command: ``driftsched``. Exit codes: 0 ok, 1 an expectation failed, 2 bad usage or bad file,
3 engine failure, 130 interrupted.

Each command imports what it needs when it runs: to import everything takes a second, too long for `--help`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.cli_bench import add_benches, add_command
from scheduler.gateway import KEY_VARIABLE
from scheduler.live.output import drop_output, open_streams, printable_lines
from scheduler.record.version import package_version

if TYPE_CHECKING:
    from scheduler.load.schema import Scenario
    from scheduler.plan import Plan

OK, FAILED, USAGE, ENGINE, INTERRUPTED = 0, 1, 2, 3, 130
PIPE = 141  # as a shell tells that SIGPIPE ended a command: the reader of stdout was gone


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    open_streams()
    try:
        args = _parser().parse_args((sys.argv[1:] if argv is None else argv) or ["live"])
        command: Callable[[argparse.Namespace], int] = args.command
        code = command(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return PIPE
    except OSError as error:
        _complain(f"driftsched: {error}")
        return USAGE
    except Exception as error:
        if (told := _told(error)) is None:
            raise
        code, line = told
        _complain(line)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        drop_output()


def _told(error: Exception) -> tuple[int, str] | None:
    """The exit code and the line of an error that has both; None of a mistake of ours."""
    from scheduler.bench.result import BadInput, BenchError
    from scheduler.engines.engine import EngineConfigError, EngineError
    from scheduler.load.yamlfile import ScenarioError
    from scheduler.plan import PlanError
    from scheduler.record.errors import FolderError

    match error:
        case ScenarioError():
            return USAGE, str(error)
        case PlanError() | EngineConfigError() | BadInput() | FolderError():
            return USAGE, f"driftsched: {error}"
        case BenchError():
            return FAILED, f"driftsched: {error}"
        case EngineError():
            return ENGINE, f"driftsched: engine failure: {error}"
        case _:
            return None


def _say(text: str) -> None:
    print(printable_lines(text))


def _complain(text: str) -> None:
    with suppress(OSError):  # where nobody reads it, the exit code says it
        print(printable_lines(text), file=sys.stderr)


def live_main() -> int:
    """``driftui`` is an alias of ``driftsched live``."""
    return main(["live", *sys.argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="driftsched",
        description="Decides which tenant's request an LLM engine runs next, and shows it live.",
        epilog="Without a command: driftsched live demo. Exit codes: 0 ok, 1 an expectation failed, "
        "2 bad usage or bad file, 3 engine failure, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"driftsched {package_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, what: str, **more: Any) -> argparse.ArgumentParser:
        return add_command(commands, name, what, **more)

    live = add("live", "the dashboard on a run")
    live.add_argument("scenario", nargs="?", default="demo", help="a file, or a shipped name (default: demo)")
    _add_run_options(live)
    live.add_argument(
        "--speed", type=_positive, metavar="X", help="run seconds in a second (simulated engine)"
    )
    live.add_argument("--record", type=_folder, metavar="DIR", help="write the run folder")
    live.add_argument("--listen", metavar="HOST:PORT", help="let clients in too (the OpenAI API)")
    live.set_defaults(command=_live)

    run = add("run", "a scenario without a screen; exit 0 only if every expectation held")
    run.add_argument("scenario", help="a file, or a shipped name")
    _add_run_options(run)
    run.add_argument(
        "--clock", choices=("virtual", "real"), help="default: virtual when simulated, else real"
    )
    run.add_argument("--seed", type=_seed, metavar="N", help="instead of the scenario's")
    run.add_argument("--out", type=_folder, metavar="DIR", help="write the run folder")
    run.add_argument("--record-text", action="store_true", help="prompts go into the run folder (mode 0600)")
    run.add_argument("--json", action="store_true", help="run.json on stdout, and nothing else")
    run.set_defaults(command=_run)

    serve = add("serve", "gateway and scheduler, no dashboard")
    serve.add_argument("--config", metavar="FILE", help="a scenario without load, and keys (docs/gateway.md)")
    serve.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8000", help="default: %(default)s")
    serve.add_argument("--journal", type=Path, metavar="FILE", help="keep durable jobs there (/v1/jobs)")
    serve.add_argument("--record", type=_folder, metavar="DIR", help="write the run folder")
    _add_run_options(serve)
    serve.set_defaults(command=_serve)

    attach = add(
        "attach",
        "the dashboard on a running serve",
        epilog=f"The operator's key is read from {KEY_VARIABLE}.",
    )
    attach.add_argument("url", metavar="URL", help="such as http://127.0.0.1:8000")
    attach.set_defaults(command=_attach)

    replay = add("replay", "the dashboard on a recorded run")
    replay.add_argument("folder", type=Path, metavar="DIR", help="as --out and --record write it")
    replay.add_argument(
        "--speed", type=_positive, default=1.0, metavar="X", help="recorded seconds in a second (default: 1)"
    )
    replay.add_argument(
        "--check", action="store_true", help="no screen: make its decisions again; exit 1 where they differ"
    )
    replay.set_defaults(command=_replay)

    report = add("report", "one self-contained page with figures, from run folders")
    report.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="run folders, or their parent")
    report.add_argument(
        "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s"
    )
    report.add_argument("--figures", type=Path, metavar="DIR", help="also write each figure as PNG and SVG")
    report.set_defaults(command=_report)

    check = add("check", "validate a scenario file, or a config of serve")
    check.add_argument("scenario", help="a file, or a shipped name")
    check.set_defaults(command=_check)

    models = add("models", "small models to run without a GPU")
    verbs = models.add_subparsers(title="verbs", metavar="VERB", required=True)
    add_command(verbs, "list", "what there is").set_defaults(command=_models_list)
    making = add_command(verbs, "prepare", "build a model's folder in the user's cache")
    making.add_argument("name", help="one of `driftsched models list`")
    making.set_defaults(command=_models_prepare)

    add_benches(commands)
    add("policies", "list what may order the queue").set_defaults(command=_policies)
    add("scenarios", "list those that ship").set_defaults(command=_scenarios)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=("auto", "sim", "vllm"), help="instead of the scenario's")
    parser.add_argument("--model", metavar="M", help="smollm2, a model's folder, or a Hugging Face name")
    parser.add_argument("--policy", metavar="P", help='a name, or "aging rate=0.05"; see driftsched policies')


def _folder(text: str) -> Path:
    """A folder that is there or can be made."""
    folder = Path(text)
    if not text or (folder.exists() and not folder.is_dir()):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder, nor the name of a new one")
    return folder


def _seed(text: str) -> int:
    """As long as a number may be in a scenario and in a run folder."""
    if not re.fullmatch("-?[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number of at most 18 digits is needed")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"{text!r}: a number above 0 is needed")
    return value


def _plan(args: argparse.Namespace, scenario: Scenario, *words: str, clock: str | None = "real") -> Plan:
    from scheduler.plan import make_plan

    return make_plan(
        scenario,
        engine=args.engine,
        model=args.model,
        policy=args.policy,
        seed=getattr(args, "seed", None),
        clock=clock,
        invocation=_invocation(args, *words),
    )


def _invocation(args: argparse.Namespace, *words: str) -> list[str]:
    """The command with all that it was given, but for where it writes."""
    options = ("engine", "model", "policy", "seed", "clock", "speed")
    given = {name: value for name in options if (value := getattr(args, name, None)) is not None}
    return [*words, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def _tell_replaced(folder: Path | None) -> None:
    if folder is not None and (folder / "run.json").is_file():
        _complain(f"driftsched: {folder}: the run that is recorded there is replaced")


def _run(args: argparse.Namespace) -> int:
    from scheduler.headless import run_headless
    from scheduler.load.scenario import load_scenario
    from scheduler.record.summary import summary

    if args.record_text and args.out is None:
        _complain("driftsched: --record-text needs --out DIR: prompts are written nowhere else")
        return USAGE
    plan = _plan(args, load_scenario(args.scenario), "run", args.scenario, clock=args.clock)
    _tell_replaced(args.out)
    clock = args.clock or ("virtual" if plan.simulated else "real")
    document = run_headless(plan, clock=clock, out=args.out, text=args.record_text)
    if args.json:
        print(json.dumps(document, indent=1))
    else:
        _say(summary(document))
    for expectation in document["expect"]:
        if not expectation["ok"]:
            _complain(f"not met: {expectation['text']} (it is {json.dumps(expectation['value'])})")
    if document["failure"] is not None:
        _complain(f"driftsched: engine failure: {document['failure']}")
        return ENGINE
    if document["interrupted"]:
        return INTERRUPTED
    return OK if all(expectation["ok"] for expectation in document["expect"]) else FAILED


def _live(args: argparse.Namespace) -> int:
    if not _on_terminal("live", "for scripts there is `driftsched run`"):
        return USAGE
    from driftui.live import run_live
    from scheduler.load.scenario import load_scenario

    plan = _plan(args, load_scenario(args.scenario), "live", args.scenario)
    _tell_replaced(args.record)
    file = Path(args.scenario)
    files = file.parent if file.is_file() else None
    return run_live(plan, speed=args.speed, record=args.record, listen=args.listen, files=files)


def _on_terminal(command: str, otherwise: str) -> bool:
    """False, and told, where no screen can be drawn."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _complain(f"driftsched: {command} needs a terminal; {otherwise}")
        return False
    if os.environ.get("TERM") == "dumb":
        _complain(f"driftsched: {command} needs a terminal with a cursor that moves, and TERM is dumb")
        return False
    return True


def _attach(args: argparse.Namespace) -> int:
    if not _on_terminal("attach", "scripts ask the control API"):
        return USAGE
    from driftui.attach import run_attached

    return run_attached(args.url, os.environ.get(KEY_VARIABLE))


def _replay(args: argparse.Namespace) -> int:
    if args.check:
        return _check_run(args.folder)
    if not _on_terminal("replay", "scripts read run.json"):
        return USAGE
    from driftui.replay import run_replay

    return run_replay(args.folder, args.speed)


def _check_run(folder: Path) -> int:
    from scheduler.record.redo import NotRedoable, check

    try:
        redone = check(folder)
    except NotRedoable as error:
        _complain(f"driftsched: {folder}: its decisions cannot be made again: {error}")
        return USAGE
    if redone.difference:
        _say(f"{folder}: {redone.dispatched} dispatches the same again, then: {redone.difference}")
        return FAILED
    _say(f"{folder}: {redone.dispatched} dispatches, all the same again")
    return OK


def _serve(args: argparse.Namespace) -> int:
    from scheduler.gateway.config import default_config, load_config
    from scheduler.gateway.keys import Keys
    from scheduler.serve import serve

    config = default_config() if args.config is None else load_config(args.config)
    words = [] if args.config is None else ["--config", args.config]
    plan = _plan(args, config, "serve", *words)
    journal = args.journal or (Path(config.journal) if config.journal else None)
    _tell_replaced(args.record)
    serve(plan, Keys(config.keys, config.operator), args.listen, journal=journal, record=args.record)
    return OK


def _report(args: argparse.Namespace) -> int:
    try:
        from scheduler.record.html import write_report
    except ModuleNotFoundError as error:
        _complain(f"driftsched: the report needs {error.name}: pip install '.[report]' in its source folder")
        return USAGE
    _say(f"{args.out}: {write_report(args.folders, args.out, args.figures)} figures")
    return OK


def _check(args: argparse.Namespace) -> int:
    from scheduler.load.scenario import ScenarioError, load_scenario
    from scheduler.plan import make_plan

    try:
        scenario = load_scenario(args.scenario)
    except ScenarioError as error:
        if {problem.path for problem in error.problems}.isdisjoint(("keys", "operator", "journal")):
            raise
        from scheduler.gateway.config import load_config

        scenario = load_config(args.scenario)  # a config of serve
    make_plan(scenario, clock=None).scheduler()
    _say(f"{args.scenario}: ok (tenants: {len(scenario.tenants)}, streams: {len(scenario.load)})")
    return OK


def _models_list(args: argparse.Namespace) -> int:
    from scheduler.engines.models import available

    for model in available():
        print(f"{model.name:10} {model.state:14} {model.description}")
    return OK


def _models_prepare(args: argparse.Namespace) -> int:
    from scheduler.engines.models import prepare

    def tell(stage: str, share: float | None) -> None:
        print(stage if share is None else f"{stage} {share:4.0%}", file=sys.stderr, flush=True)

    print(prepare(args.name, tell))
    return OK


def _policies(args: argparse.Namespace) -> int:
    from scheduler.core.policies import POLICIES

    return _list(POLICIES)


def _scenarios(args: argparse.Namespace) -> int:
    from scheduler.load.scenario import shipped_scenarios

    return _list(shipped_scenarios())


def _list(lines: Any) -> int:
    width = max(map(len, lines), default=0)
    for name, line in lines.items():
        print(f"{name:{width}}  {line}")
    return OK


if __name__ == "__main__":
    sys.exit(main())
