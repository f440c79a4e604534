"""Counterparts of the paper's figures 2 and 4 to 12, drawn with matplotlib from run folders.

Lines and letters are drawn in one marker colour that the page turns into ``currentColor``, so that a figure
reads in light and dark; on files of their own they are black on white.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from scheduler.core.policies import PAPER_POLICIES
from scheduler.core.text import is_unsafe
from scheduler.core.types import CATEGORIES, RUNTIME_CLASSES, TIERS
from scheduler.record.folders import RunFolder

INK = "#000001"  # as good as black, and stands for currentColor
COLOURS = ("#3b8ee0", "#e0812b", "#3aa657", "#c8559f", "#8b7cd8")  # readable on white and on near-black
DASHES = ("-", "--", ":")  # once the colours are used up
_STYLE: Any = {  # Any: matplotlib types the keys as literals
    "font.size": 9,
    "font.family": "sans-serif",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a tenant may be called $x$
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
}


@dataclass(frozen=True)
class ReportFigure:
    """One figure, its caption, and the runs it was drawn from."""

    id: str
    title: str
    caption: str
    figure: Figure
    runs: list[str]

    def svg(self) -> str:
        """For a page: no size in points, letters in the page's colour."""
        text = self._save("svg").decode("utf-8")
        return text[text.index("<svg") :].replace(INK, "currentColor")

    def file(self, kind: str) -> bytes:
        """``svg`` or ``png``, black on white."""
        return self._save(kind, facecolor="white", dpi=150)

    def _save(self, kind: str, **options: Any) -> bytes:
        data = io.BytesIO()
        with warnings.catch_warnings(), matplotlib.rc_context({**_STYLE, "svg.hashsalt": self.id}):
            warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script without a font
            metadata = {"Date": None} if kind == "svg" else None
            self.figure.savefig(data, format=kind, transparent=not options, metadata=metadata, **options)
        return data.getvalue()


def pictures(runs: Sequence[RunFolder]) -> Iterator[ReportFigure]:
    """Every figure that these runs have the data for."""
    with matplotlib.rc_context(_STYLE):
        counters = sorted({run.counter for run in runs}, reverse=True)
        yield from _misclassified(runs)
        for number, counter in zip((4, 5), counters, strict=False):
            yield from _categories(number, counter, [run for run in runs if run.counter == counter])
        for number, counter in zip((6, 7), counters, strict=False):
            mine = [run for run in runs if run.counter == counter and run.calibrated]
            yield from _by_policy(
                f"{number}-bias-{counter}",
                f"Figure {number}: how the bias settles, {counter} counter",
                "Learned multiplier of each category after every completion, over run time.",
                mine,
                _bias,
            )
        main = [run for run in runs if run.counter == counters[0] and run.calibrated]
        yield from _by_policy(
            "8-queues",
            "Figure 8: queue depth by tenant",
            "Requests waiting, sampled every second.",
            main,
            _queues,
        )
        yield from _latency(main)
        for number, counter in zip((10, 11), counters, strict=False):
            yield from _budgets(number, counter, [run for run in runs if run.counter == counter])
        yield from _engine_time(main)


def plain(text: str) -> str:
    """A name from outside as a figure may show it: no control characters, no markup, not endless."""
    shown = "".join("?" if is_unsafe(char) else char for char in text)
    return shown[:40]


def _one_per_policy(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Of the regime that has more policies, else of the paper's (micro-batches). Of several runs of a policy
    the first.
    """
    static: dict[str, RunFolder] = {}
    continuous: dict[str, RunFolder] = {}
    for run in runs:
        if run.rows:
            (static if run.static else continuous).setdefault(run.policy, run)
    first = continuous if len(continuous) > len(static) else static

    def place(run: RunFolder) -> tuple[int, str]:
        name = run.policy.split(" ")[0]
        return (PAPER_POLICIES.index(name) if name in PAPER_POLICIES else len(PAPER_POLICIES), run.policy)

    return sorted(first.values(), key=place)


def _pair(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """One run without and one with calibration, alike in policy where possible."""
    picked = []
    for calibrated in (False, True):
        mine = _one_per_policy([run for run in runs if run.calibrated is calibrated])
        picked += mine[:1]
    return picked


def _figure(columns: int, height: float = 2.6, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(10.0, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _same_top(axes: Sequence[Axes], bottom: float | None = None) -> None:
    """What stands side by side is compared."""
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(bottom, top)


def _name_below(ax: Axes, places: Sequence[int], runs: Sequence[RunFolder]) -> None:
    """Policies below an axis: a few in lines, many aslant."""
    names = [plain(run.policy) for run in runs]
    if len(names) <= 4:
        ax.set_xticks(places, [name.replace(" ", "\n") for name in names])
    else:
        ax.set_xticks(places, names, rotation=25, ha="right", rotation_mode="anchor")


def _names(runs: Sequence[RunFolder]) -> list[str]:
    return [run.name for run in runs]


def _learned(run: RunFolder) -> str:
    return "calibrated" if run.calibrated else "not calibrated"


def _misclassified(runs: Sequence[RunFolder]) -> Iterator[ReportFigure]:
    shown = _pair(runs)
    if not shown:
        return
    figure, axes = _figure(len(shown))
    worst = max(shown[0].rows, key=lambda row: abs(row.actual - row.estimated))
    for ax, run in zip(axes, shown, strict=True):
        table = [[0] * len(RUNTIME_CLASSES) for _ in RUNTIME_CLASSES]
        for row in run.rows:
            estimated, true = (RUNTIME_CLASSES.index(name) for name in row.classes)
            table[estimated][true] += 1
        most = max(1, max(map(max, table)))
        shades = [[(*to_rgb(COLOURS[0]), 0.7 * count / most) for count in line] for line in table]
        ax.imshow(shades, aspect="auto")  # see-through where there is little, on any background
        for y, line in enumerate(table):
            for x, count in enumerate(line):
                ax.text(x, y, str(count), ha="center", va="center")
        ax.set_xticks(range(3), RUNTIME_CLASSES)
        ax.set_yticks(range(3), RUNTIME_CLASSES)
        ax.set_xlabel("class by the real length")
        ax.set_ylabel("class by the estimate")
        right = sum(table[n][n] for n in range(3)) / max(1, sum(map(sum, table)))
        ax.set_title(f"{plain(run.policy)}, {_learned(run)}: {right:.0%} right")
    guess, truth = worst.classes
    caption = (
        f"Requests by runtime class. The worst guess of the first run: a {worst.category} request put at "
        f"{worst.estimated:.0f} tokens ({guess}) that took {worst.actual} ({truth})."
    )
    yield ReportFigure("2-classes", "Figure 2: misclassification", caption, figure, _names(shown))


def _categories(number: int, counter: str, runs: Sequence[RunFolder]) -> Iterator[ReportFigure]:
    shown = _pair(runs)
    if not shown:
        return
    figure, axes = _figure(len(shown))
    for ax, run in zip(axes, shown, strict=True):
        left = [0.0] * len(CATEGORIES)
        totals = [max(1, sum(row.category == name for row in run.rows)) for name in CATEGORIES]
        for index, wanted in enumerate(RUNTIME_CLASSES):
            counts = [
                sum(row.category == name and row.classes[0] == wanted for row in run.rows)
                for name in CATEGORIES
            ]
            shares = [100.0 * count / total for count, total in zip(counts, totals, strict=True)]
            ax.barh(range(len(CATEGORIES)), shares, left=left, color=COLOURS[index], label=wanted)
            left = [a + b for a, b in zip(left, shares, strict=True)]
        ax.set_yticks(range(len(CATEGORIES)), CATEGORIES)
        ax.invert_yaxis()
        ax.set_xlabel("% of the category's requests")
        ax.set_title(f"{plain(run.policy)}, {_learned(run)}")
    axes[-1].legend(loc="lower left", bbox_to_anchor=(1.0, 0.0))
    title = f"Figure {number}: semantic category against runtime class, {counter} counter"
    caption = "Runtime class by the estimated total budget (at most 128 tokens is short, 512 medium)."
    yield ReportFigure(f"{number}-categories-{counter}", title, caption, figure, _names(shown))


def _by_policy(
    id_: str, title: str, caption: str, runs: Sequence[RunFolder], draw: Callable[[Axes, RunFolder], None]
) -> Iterator[ReportFigure]:
    shown = _one_per_policy(runs)
    if not shown:
        return
    columns = min(3, len(shown))
    figure, axes = _figure(columns, rows=-(-len(shown) // columns))
    for ax, run in zip(axes, shown, strict=False):
        draw(ax, run)
        ax.set_title(plain(run.policy))
        ax.set_xlabel("run time, s")
    _same_top(axes[: len(shown)])
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    _legends(figure, axes[: len(shown)])
    yield ReportFigure(id_, title, caption, figure, _names(shown))


def _legends(figure: Figure, axes: Sequence[Axes]) -> None:
    """One for all panels that mean the same by their colours, else one in each: runs of other tenants."""
    handles, labels = axes[0].get_legend_handles_labels()
    if all(ax.get_legend_handles_labels()[1] == labels for ax in axes):
        columns = min(6, max(1, len(labels)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, markerscale=3)
        return
    for ax in axes:
        highest_first = sorted(ax.get_lines(), key=lambda line: -line.get_path().get_extents().y1)
        title = "the longest five" if len(highest_first) > 5 else None
        ax.legend(handles=highest_first[:5], title=title, loc="upper left", fontsize=6, title_fontsize=6)


def _bias(ax: Axes, run: RunFolder) -> None:
    ordered = sorted(run.rows, key=lambda row: row.ended_s)
    for index, category in enumerate(CATEGORIES):
        mine = [row for row in ordered if row.category == category]
        times, biases = [row.ended_s for row in mine], [row.bias for row in mine]
        # Dots: a line would join completions that a policy sets hundreds of seconds apart.
        ax.plot(times, biases, ".", ms=2, color=COLOURS[index], label=category, rasterized=True)
    ax.axhline(1.0, color=INK, lw=0.5, ls=":")
    ax.set_ylabel("bias")


def _queues(ax: Axes, run: RunFolder) -> None:
    depths = {
        column.removeprefix("tenant:"): depth
        for column, depth in run.depth.items()
        if column.startswith("tenant:")
    }
    total = run.depth.get("total_queue_size", ())
    others = [everybody - sum(known) for everybody, *known in zip(total, *depths.values(), strict=False)]
    if any(others):
        depths["(others)"] = others  # who came with an injected scenario has no column
    for index, (name, depth) in enumerate(depths.items()):
        ax.plot(
            run.depth["elapsed_seconds"],
            depth,
            color=COLOURS[index % len(COLOURS)],
            ls=DASHES[index // len(COLOURS) % len(DASHES)],
            lw=1,
            label=f" {plain(name)}",  # a first "_" would hide it from the legend
        )
    ax.set_ylabel("requests waiting")


def _latency(runs: Sequence[RunFolder]) -> Iterator[ReportFigure]:
    regimes = [
        (title, _one_per_policy(mine))
        for title, static in (("micro-batches", True), ("continuous", False))
        if (mine := [run for run in runs if run.static is static])
    ]
    if not regimes:
        return
    figure, axes = _figure(len(regimes), height=3.0)
    for ax, (title, shown) in zip(axes, regimes, strict=True):
        groups = ("all", *TIERS)
        width = 0.8 / len(groups)
        for index, group in enumerate(groups):
            six = [_e2e(run, group) for run in shown]
            places = [n + (index - 1.5) * width for n in range(len(shown))]
            ax.bar(places, [s["p50"] for s in six], width, color=COLOURS[index], label=f"{group}, p50")
            ax.scatter(
                places,
                [s["p99"] for s in six],
                color=INK,
                s=9,
                marker="_",
                label="p99" if not index else None,
            )
        _name_below(ax, range(len(shown)), shown)
        ax.set_ylabel("end to end, s")
        ax.set_title(title)
    _same_top(axes, 0.0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    used = [run for _, mine in regimes for run in mine]
    caption = "Median as a bar, P99 as a dash, over the whole run, for all requests and by tier."
    yield ReportFigure("9-latency", "Figure 9: end-to-end latency by policy", caption, figure, _names(used))


def _e2e(run: RunFolder, group: str) -> dict[str, float]:
    """Of ``all``, or of a tier."""
    if group != "all" and group not in run.names("latency_s", "tiers"):
        return {"p50": 0.0, "p99": 0.0}
    place = ("all",) if group == "all" else ("tiers", group)
    return {key: run.number("latency_s", *place, "e2e", key) or 0.0 for key in ("p50", "p99")}


def _budgets(number: int, counter: str, runs: Sequence[RunFolder]) -> Iterator[ReportFigure]:
    shown = _pair(runs)
    if not shown:
        return
    figure, axes = _figure(len(shown), height=3.4)
    top = 1.05 * max(max(row.actual, row.estimated) for run in shown for row in run.rows)
    for ax, run in zip(axes, shown, strict=True):
        for index, category in enumerate(CATEGORIES):
            mine = [row for row in run.rows if row.category == category]
            ax.scatter(
                [row.estimated + row.input_tokens for row in mine],
                [row.actual + row.input_tokens for row in mine],
                s=5,
                alpha=0.5,
                linewidths=0,
                color=COLOURS[index],
                label=category,
                rasterized=True,
            )
        ax.axline((0, 0), slope=1, color=INK, lw=0.5, ls=":")
        ax.set_xlim(0, top)
        ax.set_ylim(0, top)
        ax.set_xlabel("estimated total budget, tokens")
        ax.set_ylabel("observed, tokens")
        error = sum(abs(row.actual - row.estimated) for row in run.rows) / len(run.rows)
        ax.set_title(f"{plain(run.policy)}, {_learned(run)}: mean error {error:.0f} tokens")
    axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=3)
    title = f"Figure {number}: estimated budget against observed length, {counter} counter"
    caption = "One dot per request, on the dotted line where the estimate was right; max_tokens cuts the top."
    yield ReportFigure(f"{number}-budget-{counter}", title, caption, figure, _names(shown))


def _engine_time(runs: Sequence[RunFolder]) -> Iterator[ReportFigure]:
    shown = _one_per_policy(runs)
    if not shown:
        return
    figure, (ax,) = _figure(1, height=2.8)
    boxes = ax.boxplot(
        [[row.engine_s for row in run.rows] for run in shown],
        whis=(1, 99),
        showfliers=False,
        patch_artist=True,
        widths=0.5,
        medianprops={"color": INK},
        whiskerprops={"color": INK},
        capprops={"color": INK},
        boxprops={"edgecolor": INK},
    )
    for index, box in enumerate(boxes["boxes"]):
        box.set_facecolor(COLOURS[index % len(COLOURS)])
    _name_below(ax, range(1, len(shown) + 1), shown)
    ax.set_ylabel("on the engine, s")
    caption = "Dispatch to the end: box from P25 to P75, whiskers from P1 to P99."
    yield ReportFigure("12-engine", "Figure 12: time on the engine by policy", caption, figure, _names(shown))
