"""The status line: who runs, how it goes, what the machine and this screen cost. Always exactly one line.

Every field has variants from long to short. While the line is too long, the one that matters least is
shortened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from operator import itemgetter
from typing import NamedTuple

from rich.cells import cell_len
from rich.segment import Segment

from driftui import figures, palette
from driftui.clean import clean
from driftui.palette import ink
from driftui.widgets.canvas import Canvas
from scheduler.live.view import Health, View

NAME = "driftsched"
_BADGE = "badge"  # not a colour: drawn dark on cyan
_BAR = " │ "


class Part(NamedTuple):
    """A piece of the status line in one style."""

    text: str
    colour: str = palette.FAINT
    bold: bool = False


Variant = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """One figure of the line: its variants from long to short, each kept more dearly than the one before.

    The last variant is what remains when cells are short; its own number says nothing.
    """

    variants: Sequence[tuple[int, Variant]]
    group: bool = False  # it begins a group: a bar stands before the first of it that is shown


@dataclass(frozen=True, slots=True)
class Cost:
    """What the screen itself takes: loop CPU per refresh, and that as a share of one core."""

    refresh_ms: float
    share: float


def fit(fields: Sequence[Field], width: int) -> list[tuple[str, Variant]]:
    """What is shown, with the gap before each: as much as ``width`` allows."""
    shown = [field.variants[0][1] for field in fields]
    cells, gaps = list(map(_cells, shown)), _gaps(fields, shown)
    shorter = [
        (keep, at, variant)
        for at, field in enumerate(fields)
        for (keep, _), (_, variant) in pairwise(field.variants)
    ]
    shorter.sort(key=itemgetter(0))
    for _, at, variant in shorter:
        if sum(cells) + sum(map(len, gaps)) <= width:
            break
        shown[at], cells[at] = variant, _cells(variant)
        if not variant:
            gaps = _gaps(fields, shown)
    return [(gap, variant) for gap, variant in zip(gaps, shown, strict=True) if variant]


def _cells(variant: Variant) -> int:
    return sum(cell_len(part.text) for part in variant)


def _gaps(fields: Sequence[Field], shown: Sequence[Variant]) -> list[str]:
    """What stands before each field: nothing before the first and those that are left out."""
    gaps = []
    gap = ""
    for field, variant in zip(fields, shown, strict=True):
        if gap and field.group:
            gap = _BAR
        gaps.append(gap if variant else "")
        gap = " " if variant else gap
    return gaps


def state(view: View, frozen: bool, leaving: str) -> tuple[list[str], str]:
    """The words for how the run and the display stand, the weightiest first, and their colour."""
    if leaving:
        return [leaving, "(q: at once)"], palette.ORANGE
    if view.replay:
        words = ["REPLAY" if view.replay == "playing" else f"REPLAY {view.replay.upper()}"]
        if view.snapshot.paused:
            words.append("DISPATCH PAUSED")
        return words, palette.VIOLET
    words = []
    if view.engine_state != "ready":
        words.append(f"ENGINE {clean(view.engine_state, 12).upper()}")
    if view.snapshot.paused:
        words.append("PAUSED")
    if frozen:
        words.append("FROZEN")
    if not words and view.scenario_done:
        return ["DONE" if view.snapshot.counts["submitted"] else "IDLE"], palette.CYAN
    if not words:
        return ["LIVE"], palette.GOOD
    bad = view.engine_state in ("dead", "restarting")
    colour = palette.BAD if bad else palette.CYAN if frozen and len(words) == 1 else palette.WARN
    return words, colour


def _load_colour(share: float | None) -> str:
    if share is None or share < 0.75:
        return palette.TEXT
    return palette.WARN if share < 0.9 else palette.BAD


def _engine(view: View) -> Field:
    detail = clean(view.engine_detail, 48)
    if view.simulated and "simulated" not in detail:
        detail = f"simulated {clean(view.engine_detail, 38)}"
    short = "simulated" if view.simulated else clean(view.engine_kind, 8)
    faint, brief = Part("engine "), Part(detail.split(",")[0], palette.TEXT)
    variants = [
        (10, (faint, Part(detail, palette.TEXT))),
        (19, (faint, brief)),
        (32, (brief,)),
        (99, (Part(short, palette.TEXT),)),
    ]
    return Field(variants, group=True)


def _policy(view: View) -> Field:
    snapshot = view.snapshot
    word = Part("policy ")
    brief = Part(clean(snapshot.policy.partition(" ")[0], 24), palette.BRIGHT, True)
    if snapshot.swap is not None:
        target, done = snapshot.swap
        to = f"→ {clean(target.partition(' ')[0], 24)}" if target != snapshot.policy else "re-estimating"
        swap = Part(f" {to} {figures.percent(done)}", palette.ORANGE)
        return Field([(60, (word, brief, swap)), (99, (brief, swap))])
    name = Part(clean(snapshot.policy, 40), palette.BRIGHT, True)  # with its parameters
    since = Part(f" since {figures.clock(snapshot.now - snapshot.policy_since_s)}")
    rules = ["auto"] * view.autopilot + ["guarded"] * view.guarded
    if not rules:
        return Field([(38, (word, name, since)), (39, (word, name)), (70, (word, brief)), (99, (brief,))])
    armed = Part(f"{', '.join(rules)}: ")
    variants: list[tuple[int, Variant]] = [(38, (word, armed, name, since)), (39, (word, armed, name))]
    return Field([*variants, (40, (word, armed, brief)), (70, (armed, brief)), (99, (brief,))])


_LOST = (("rejected", "rej", palette.WARN), ("expired", "exp", palette.WARN), ("failed", "fail", palette.BAD))


def _lost(counts: Mapping[str, int]) -> list[Field]:
    """Those who stand in no queue, and got no answer."""
    found = []
    for word, short, colour in _LOST:
        if counts[word]:
            figure = Part(figures.count(counts[word]), colour)
            variants = [(46, (Part(f"{word} "), figure)), (72, (Part(f"{short} "), figure)), (99, ())]
            found.append(Field(variants))
    return found


def _scenario(view: View) -> Field:
    if not view.scenario:
        return Field([(0, ())])
    total_s = view.scenario_total_s or None  # a load that comes all at once takes no time
    total = "" if total_s is None else f"/{figures.clock(total_s)}"
    speed = "" if view.speed == 1 else f" ×{figures.plain(view.speed)}"
    elapsed_s = view.scenario_elapsed_s  # the run goes on when its load is over
    if total_s is not None:
        elapsed_s = min(elapsed_s, total_s)
    elapsed = Part(f"{figures.clock(elapsed_s)}{total}{speed}", palette.TEXT)
    name = Part(clean(view.scenario, 20) + " ", palette.BRIGHT)
    variants = [(14, (Part("scenario "), name, elapsed)), (36, (name, elapsed))]
    if view.replay:  # a recording's time is where one is
        variants += [(79, (elapsed,)), (84, (Part(figures.clock(elapsed_s), palette.TEXT),))]
    else:
        variants.append((50, (elapsed,)))
    return Field([*variants, (99, ())], group=True)


def _recording(view: View) -> Field:
    if not view.recording:
        return Field([(0, ())])
    size = Part(f" {figures.size(view.recorded_bytes)}", palette.BAD, True)
    word = Part("● REC", palette.BAD, True)
    return Field([(28, (word, size)), (51, (word,)), (99, ())], group=True)


def _machine(view: View, cost: Cost) -> list[Field]:
    health = view.health
    # Steal and pressure come forward when they hurt: then they explain the latency beside them.
    shares = (
        ("gpu", health.gpu_share, 30),
        ("cpu", health.cpu_share, 29),
        ("mem", health.memory_share, 12),
        ("steal", health.steal_share, 33 if (health.steal_share or 0.0) >= 0.05 else 11),
        ("psi", health.pressure_some, 31 if (health.pressure_some or 0.0) >= 0.2 else 13),
    )
    figures_shown = [
        (keep, name, Part(f"{figures.percent(share):>3}", _load_colour(share)))
        for name, share, keep in shares
        if share is not None
    ]
    lag_ms = view.loop_lag_p99_ms
    if not isnan(lag_ms):
        lag_colour = palette.TEXT if lag_ms < 20 else palette.WARN if lag_ms < 100 else palette.BAD
        figures_shown.append((34, "lag", Part(f"{lag_ms:2.0f}ms", lag_colour)))
    screen = Part(f"{cost.refresh_ms:.1f}ms {100 * cost.share:.1f}%", palette.TEXT)
    figures_shown.append((32, "ui", screen))
    found = []
    for at, (keep, name, figure) in enumerate(figures_shown):
        variants: list[tuple[int, Variant]] = [(keep, (Part(f"{name} "), figure)), (99, ())]
        if name == "gpu" and (heat := _heat(health)):
            variants.insert(0, (15, (Part("gpu "), figure, Part(heat, palette.TEXT))))
        found.append(Field(variants, group=not at))
    return found


def _heat(health: Health) -> str:
    """What a card that throttles is told by."""
    figures_known = ((health.gpu_temperature_c, "°C"), (health.gpu_power_w, "W"))
    return "".join(f" {figure:.0f}{unit}" for figure, unit in figures_known if figure is not None)


def fields(view: View, frozen: bool, leaving: str, cost: Cost) -> list[Field]:
    """Everything there is to say, from left to right."""
    snapshot = view.snapshot
    words, colour = state(view, frozen, leaving)
    full = snapshot.in_flight >= snapshot.capacity
    # As wide as they usually get, or all that stands behind them would not keep still.
    in_flight = f"{snapshot.in_flight:{len(str(snapshot.capacity))}}"
    run = Part(f"{in_flight}/{snapshot.capacity}", palette.WARN if full else palette.TEXT)
    wait = Part(f"{figures.count(snapshot.queued):>3}", palette.WARN if snapshot.queued else palette.TEXT)
    rate = Part(f"{figures.count(snapshot.tokens_per_s):>4}", palette.TEXT)
    kv = view.engine.kv_use
    kv_figure: Variant = (
        () if kv is None else (Part("kv "), Part(f"{figures.percent(kv):>3}", _load_colour(kv)))
    )
    return [
        Field([(78, (Part(f" {NAME} ", _BADGE, True),)), (99, (Part(" ds ", _BADGE, True),))]),
        Field(
            [
                (85, (Part("● " + " ".join(words), colour, True),)),
                (99, (Part(f"● {words[0]}", colour, True),)),
            ]
        ),
        _policy(view),
        _engine(view),
        Field([(40, kv_figure), (99, ())]),
        Field([(80, (Part("run "), run)), (99, (run,))]),
        Field([(80, (Part("wait "), wait)), (99, (wait,))]),
        *_lost(snapshot.counts),
        Field([(42, (Part("tok/s "), rate)), (99, ())]),
        _scenario(view),
        _recording(view),
        *_machine(view, cost),
    ]


class StatusLine(Canvas):
    """The top line of the screen."""

    _line: Sequence[Segment] = ()

    @property
    def background(self) -> str:
        return palette.SURFACE

    def show(self, view: View, *, frozen: bool, leaving: str, cost: Cost) -> None:
        line = self._compose_line(fields(view, frozen, leaving, cost))
        if line != self._line:
            self._line = line
            self.redraw()

    def _compose_line(self, all_fields: Sequence[Field]) -> list[Segment]:
        segments: list[Segment] = []
        for gap, variant in fit(all_fields, self.cells.width):
            if gap:
                segments.append(Segment(gap, ink(palette.FRAME, on=palette.SURFACE)))
            for part in variant:
                on, colour = palette.SURFACE, part.colour
                if colour == _BADGE:
                    on, colour = palette.CYAN, palette.BACKGROUND
                segments.append(Segment(part.text, ink(colour, on=on, bold=part.bold)))
        return segments

    def draw(self, y: int) -> Sequence[Segment]:
        return self._line
