"""Pictures of real runs: plays a scenario, types keys at given times and keeps the screen as SVG.

    python screenshots/render.py demo --keys '75:shot=demo-160x48'
    python screenshots/render.py demo --size 80x24 --keys '75:shot=demo-80x24'
    python screenshots/render.py demo --keys '45:p 53:shot=policies-160x48'
    python screenshots/render.py cpu-real --engine vllm --model smollm2 --keys '40:shot=smollm2-160x48'

Each step is SECONDS:KEY (Textual key names) or SECONDS:shot=NAME, at seconds of the run.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import TextIO

from driftui.app import DriftApp
from scheduler.engines.vllm_setup import preflight
from scheduler.live.feed import LocalFeed
from scheduler.live.output import engine_output_to, log_path
from scheduler.live.run import LiveRun
from scheduler.load.scenario import load_scenario
from scheduler.plan import Plan, make_plan

HERE = Path(__file__).parent


async def play(plan: Plan, size: tuple[int, int], steps: list[tuple[float, str]], progress: TextIO) -> None:
    run = LiveRun(plan)
    app = DriftApp(LocalFeed(run))
    async with app.run_test(size=size) as pilot:
        await run.start()
        for at_s, what in steps:
            await asyncio.sleep(max(0.0, (at_s - run.clock.now()) / run.clock.speed))
            if what.startswith("shot="):
                await pilot.pause()
                path = HERE / f"{what.removeprefix('shot=')}.svg"
                path.write_text(app.export_screenshot(title="driftsched"), encoding="utf-8")
                print(path.name, file=progress, flush=True)
            else:
                await pilot.press(what)
        await run.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenario")
    parser.add_argument("--size", default="160x48")
    parser.add_argument("--engine")
    parser.add_argument("--model")
    parser.add_argument("--keys", required=True)
    args = parser.parse_args()
    width, height = (int(part) for part in args.size.split("x"))
    steps = [(float(at), what) for at, _, what in (step.partition(":") for step in args.keys.split())]
    plan = make_plan(load_scenario(args.scenario), engine=args.engine, model=args.model)
    if not plan.simulated:
        preflight(plan.model)
    with engine_output_to(log_path()) as kept:
        asyncio.run(play(plan, (width, height), steps, kept.stderr))


if __name__ == "__main__":
    main()
