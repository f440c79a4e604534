"""``driftsched bench``: its part of the command line. A bench is imported when it is asked for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.live.output import engine_output_to, log_path, printable

if TYPE_CHECKING:
    from scheduler.bench.engine import Work
    from scheduler.bench.result import Result


def add_command(commands: Any, name: str, what: str, **more: Any) -> argparse.ArgumentParser:
    """A command and the sentence that says what it is, in the list of commands and in its own help."""
    sentence = f"{what[0].upper()}{what[1:]}."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=sentence, **more)
    return parser


def add_benches(commands: Any) -> None:
    """Add ``bench`` to the parser's commands; each bench sets ``measure``, which returns its result."""
    bench = add_command(commands, "bench", "measure: every performance claim, with its protocol")
    benches = bench.add_subparsers(title="benches", metavar="BENCH", required=True)

    core = add_command(benches, "core", "the scheduler alone, beside a bare heapq; two minutes")
    core.set_defaults(measure=_bench_core)

    engine = add_command(benches, "engine", "tokens/s beside the same prompts straight to vLLM; minutes")
    engine.add_argument("--model", default="smollm2", metavar="M", help="default: smollm2")
    _add_work_options(engine)
    engine.set_defaults(measure=_bench_engine)

    screen = add_command(benches, "screen", "what the dashboard costs, on a pseudo-terminal; minutes")
    screen.add_argument("--refreshes", type=_whole, metavar="N", help="default: 480, the demo once")
    screen.add_argument("--model", metavar="M", help="also tokens/s of this model's engine, beside headless")
    _add_work_options(screen)
    screen.set_defaults(measure=_bench_screen)

    twin = add_command(benches, "twin", "the twin, fitted to a real engine, beside runs of it; minutes")
    twin.add_argument("--model", default="smollm2", metavar="M", help="default: smollm2")
    twin.add_argument("--requests", type=_whole, metavar="N", help="of each scenario; default: 300")
    twin.add_argument("--tokens", type=_whole, metavar="N", help="median answer; default: 16")
    twin.add_argument("--concurrency", type=_whole, metavar="N", help="the engine's batch; default: 16")
    twin.add_argument("--repeats", type=_whole, metavar="N", help="runs of each scenario; default: 3")
    twin.set_defaults(measure=_bench_twin)

    paper = add_command(benches, "paper", "the paper's whole experiment on the simulated GPU; minutes")
    paper.add_argument("--seeds", type=_whole, default=5, metavar="N", help="runs of each cell; default: 5")
    paper.add_argument("--paper-faithful", action="store_true", help="keep the paper's quirks")
    paper.set_defaults(measure=_bench_paper)

    estimate = add_command(benches, "estimate", "every estimator on real prompts and under drift; minutes")
    estimate.add_argument("--lengths", type=Path, required=True, metavar="FILE", help="JSON lines of prompts")
    estimate.add_argument("--embeddings", metavar="minilm|FOLDER", help="also learned with all-MiniLM-L6-v2")
    estimate.add_argument("--train", type=Path, metavar="FILE", help="train the priors on these lengths")
    estimate.add_argument(
        "--folds", type=_whole, default=10, metavar="N", help="if the shipped prior knows FILE; default: 10"
    )
    estimate.set_defaults(measure=_bench_estimate)

    policies = add_command(benches, "policies", "the policies under thirteen loads in virtual time; minutes")
    policies.add_argument("--trace", type=Path, metavar="FILE", help="also an Azure trace (CSV)")
    policies.set_defaults(measure=_bench_policies)

    gateway = add_command(benches, "gateway", "requests/s beside a bare aiohttp echo; a minute")
    gateway.add_argument("--model", metavar="M", help="also this model, beside vllm serve; four minutes more")
    gateway.add_argument("--pairs", type=_whole, default=5, metavar="N", help="of those; default: 5")
    gateway.set_defaults(measure=_bench_gateway)

    preview = add_command(benches, "preview", "what previews say beside what then happens; minutes")
    preview.add_argument("--switches", type=_whole, default=40, metavar="N", help="default: 40")
    preview.set_defaults(measure=_bench_preview)

    for parser in benches.choices.values():
        parser.set_defaults(command=_bench)
        parser.add_argument(
            "--out", type=Path, metavar="DIR", help="also write the document to DIR/bench-NAME.json"
        )
        parser.add_argument("--json", action="store_true", help="the document on stdout, and nothing else")


def _add_work_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pairs", type=_whole, default=5, metavar="N", help="of two turns a side; default: 5"
    )
    parser.add_argument("--requests", type=_whole, metavar="N", help="of each turn; default: 40")
    parser.add_argument("--tokens", type=_whole, metavar="N", help="median answer; default: 96")
    parser.add_argument("--concurrency", type=_whole, metavar="N", help="the engine's batch; default: 16")


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number above 0 is needed")
    return value


def _tell(line: str) -> None:
    print(printable(line), file=sys.stderr, flush=True)


@contextmanager
def _telling_beside_an_engine() -> Iterator[Callable[[str], None]]:
    """The same while what engines print goes to a log."""
    with engine_output_to(log_path()) as output:
        yield lambda line: print(printable(line), file=output.stderr, flush=True)


def _bench(args: argparse.Namespace) -> int:
    """A claim that was missed is a result, not a failure: the document says so."""
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)  # what is measured for minutes has a place to go
    result: Result = args.measure(args)
    document = json.dumps(result.document(), indent=1)
    print(document if args.json else result.text())
    if args.out is not None:
        (args.out / f"bench-{result.bench}.json").write_text(document + "\n", encoding="utf-8")
    return 0


def _bench_core(args: argparse.Namespace) -> Result:
    from scheduler.bench.core import bench_core

    return bench_core(_tell)


def _bench_engine(args: argparse.Namespace) -> Result:
    from scheduler.bench.engine import bench_engine

    with _telling_beside_an_engine() as tell:
        return bench_engine(tell, model=args.model, work=_work(args), pairs=args.pairs)


def _bench_screen(args: argparse.Namespace) -> Result:
    from driftui.bench import REFRESHES, bench_screen

    refreshes = args.refreshes or REFRESHES
    return bench_screen(_tell, refreshes=refreshes, model=args.model, work=_work(args), pairs=args.pairs)


def _bench_twin(args: argparse.Namespace) -> Result:
    from scheduler.bench.twin import Sizes, bench_twin

    sizes = Sizes(**_given(args, "requests", "tokens", "concurrency", "repeats"))
    with _telling_beside_an_engine() as tell:
        return bench_twin(tell, model=args.model, sizes=sizes, out=args.out)


def _bench_paper(args: argparse.Namespace) -> Result:
    from scheduler.bench.paper import bench_paper
    from scheduler.headless import counting

    with counting("paper", "runs", sys.stderr) as progress:
        return bench_paper(
            _tell, seeds=args.seeds, faithful=args.paper_faithful, out=args.out, progress=progress
        )


def _bench_estimate(args: argparse.Namespace) -> Result:
    from scheduler.bench.estimate import bench_estimate

    return bench_estimate(args.lengths, _tell, args.embeddings, folds=args.folds, training=args.train)


def _bench_preview(args: argparse.Namespace) -> Result:
    from scheduler.bench.preview import bench_preview

    return bench_preview(_tell, switches=args.switches)


def _bench_policies(args: argparse.Namespace) -> Result:
    from scheduler.bench.policies import bench_policies

    return bench_policies(_tell, trace=args.trace)


def _bench_gateway(args: argparse.Namespace) -> Result:
    from scheduler.bench.gateway import bench_gateway

    with _telling_beside_an_engine() as tell:
        return bench_gateway(tell, model=args.model, pairs=args.pairs)


def _work(args: argparse.Namespace) -> Work:
    from scheduler.bench.engine import Work

    return Work(**_given(args, "requests", "tokens", "concurrency"))


def _given(args: argparse.Namespace, *names: str) -> dict[str, int]:
    """Those of these sizes that the command line says."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}
