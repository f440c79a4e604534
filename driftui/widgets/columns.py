"""The columns of the tenants table: what each shows, how wide it is, and which give way first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import inf, isfinite, isnan

from driftui import figures, palette
from driftui.clean import clean
from driftui.history import Floats
from scheduler.core.types import Percentiles, TenantSnapshot

Cell = tuple[str, str]  # text and colour

_BARS = " ▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Row:
    """One tenant and what its cells need beside the snapshot."""

    tenant: TenantSnapshot
    colour: str
    latency: str  # "e2e" or "ttft"
    queue: Floats  # last minute, for the sparklines
    drift: Floats

    @property
    def percentiles(self) -> Percentiles:
        return self.tenant.e2e if self.latency == "e2e" else self.tenant.ttft

    @property
    def objective_s(self) -> float:
        return self.tenant.slo.e2e_s if self.latency == "e2e" else self.tenant.slo.ttft_s


@dataclass(frozen=True, slots=True)
class Column:
    """``keep`` says how dearly: a narrow screen leaves out the columns with the smallest."""

    title: str
    width: int
    keep: int
    cell: Callable[[Row, int], Cell]
    align: str = ">"
    order: Callable[[TenantSnapshot, str], float] | None = None  # by it, largest first; "e2e" or "ttft"
    about: str = ""  # what it shows, for the help


def spark(values: Floats, least: float) -> str:
    """A row of bars, one per value; the tallest is ``least`` or more, nothing known is a blank."""
    known = [value if isfinite(value) else -1.0 for value in values.tolist()]
    step = max(least, *known) / 7
    return "".join([_BARS[round(1 + value / step)] if value >= 0 else " " for value in known])


def bar(share: float, width: int) -> str:
    """A horizontal bar, filled to ``share``, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8) if isfinite(share) else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def _graded(value: float, warn: float, bad: float) -> str:
    if isnan(value) or value < warn:
        return palette.TEXT
    return palette.WARN if value < bad else palette.BAD


def _queue(row: Row, width: int) -> Cell:
    tenant = row.tenant
    objective = tenant.slo.ttft_s if isfinite(tenant.slo.ttft_s) else tenant.slo.e2e_s
    wait = tenant.oldest_wait_s / objective if isfinite(objective) else 0.0
    fill = tenant.queued / tenant.limits.max_queued if tenant.limits.max_queued else 0.0
    return figures.count(tenant.queued), _graded(max(wait, fill), 0.5, 0.95)


def _percentile(name: str) -> Callable[[Row, int], Cell]:
    def cell(row: Row, width: int) -> Cell:
        value: float = getattr(row.percentiles, name)
        objective = row.objective_s if name != "p50" else inf
        return figures.seconds(value), _graded(value, 0.8 * objective, objective)

    return cell


def _slo(row: Row, width: int) -> Cell:
    share = row.tenant.slo_share
    if isnan(share):
        return figures.NOTHING, palette.FAINT
    colour = palette.GOOD if share >= 0.95 else palette.WARN if share >= 0.9 else palette.BAD
    return figures.percent(share), colour


def _drift(row: Row, width: int) -> Cell:
    ratio = row.tenant.drift_ratio
    if isnan(ratio):
        return figures.NOTHING, palette.FAINT
    off = max(ratio, 1 / ratio) if ratio > 0 else inf
    return figures.ratio(ratio), palette.GOOD if off < 1.15 else palette.WARN if off < 1.5 else palette.BAD


def _count(name: str, colour: str = palette.TEXT) -> Callable[[Row, int], Cell]:
    return lambda row, width: (figures.count(getattr(row.tenant, name)), colour)


def _queue_spark(row: Row, width: int) -> Cell:
    return spark(row.queue, 8.0), row.colour


def _drift_spark(row: Row, width: int) -> Cell:
    return spark(row.drift, 2.0), row.colour


def _converged(row: Row, width: int) -> Cell:
    return ("ok", palette.GOOD) if row.tenant.converged else ("…", palette.WARN)


TENANT = "tenant"
LONGEST_NAME = 32  # that a wide screen shows whole
_USUAL_NAME = 18  # that any screen does which has room for what is dear
_DEAR = 90  # of ``keep``
QUEUE_SPARK = "queue 60s"
DRIFT_SPARK = "drift 60s"

COLUMNS: tuple[Column, ...] = (
    Column(TENANT, 14, 99, lambda r, w: (clean(r.tenant.name, w), r.colour), "<"),
    Column("tier", 8, 50, lambda r, w: (clean(r.tenant.tier, w), palette.FAINT)),
    Column(
        "wt",
        4,
        48,
        lambda r, w: (figures.weight(r.tenant.weight), palette.TEXT),
        order=lambda t, _: t.weight,
        about="Weight: its share where tenants share fairly.",
    ),
    Column("queue", 6, 98, _queue, order=lambda t, _: t.queued, about="Requests that wait."),
    Column("run", 4, 97, _count("in_flight"), order=lambda t, _: t.in_flight, about="Requests in flight."),
    Column("", 8, 30, lambda r, w: (bar(r.tenant.share, w), r.colour), "<"),
    Column(
        "share",
        5,
        60,
        lambda r, w: (figures.percent(r.tenant.share), r.colour),
        order=lambda t, _: t.share,
        about="Its part of all tokens served.",
    ),
    Column(
        "tok/s",
        6,
        58,
        _count("tokens_per_s"),
        order=lambda t, _: t.tokens_per_s,
        about="Output tokens a second.",
    ),
    Column("p50", 6, 94, _percentile("p50"), about="Median latency, seconds; key l: E2E or TTFT."),
    Column("p95", 6, 93, _percentile("p95"), about="Latency that 95 % stayed within."),
    Column(
        "p99",
        6,
        95,
        _percentile("p99"),
        order=lambda t, latency: (t.e2e if latency == "e2e" else t.ttft).p99,
        about="The same of 99 %; red: past its objective.",
    ),
    Column("SLO", 5, 62, _slo, about="Requests that met every objective."),
    Column(
        "est",
        5,
        40,
        _count("estimated_tokens", palette.FAINT),
        about="Tokens of an answer as estimated, mean.",
    ),
    Column("act", 5, 41, _count("actual_tokens"), about="Tokens of the same answers, mean."),
    Column("drift", 6, 96, _drift, order=lambda t, _: t.drift_ratio, about="Actual / estimated tokens."),
    Column(
        "bias",
        6,
        92,
        lambda r, w: (figures.ratio(r.tenant.bias), palette.TEXT),
        order=lambda t, _: t.bias,
        about="What estimates are multiplied by, learned.",
    ),
    Column("conv", 4, 20, _converged, about="Whether the bias has settled."),
    Column(
        "cover",
        5,
        22,
        lambda r, w: (figures.percent(r.tenant.coverage), palette.FAINT),
        about="Answers within their upper estimate.",
    ),
    Column(QUEUE_SPARK, 9, 35, _queue_spark, "<"),
    Column(DRIFT_SPARK, 9, 25, _drift_spark, "<"),
)
SORTABLE: tuple[Column, ...] = tuple(column for column in COLUMNS if column.order is not None)


@cache
def choose(width: int, name: int = 0) -> tuple[tuple[Column, int], ...]:
    """The columns that fit into ``width`` cells, one blank between two, in order, with the widths they get.

    Names go before all that is not dear, as far as is usual; what is left over goes to them, the longest of
    which takes ``name`` cells, then to the sparklines.
    """
    widths: dict[str, int] = {}
    spare = width + 1
    for least, longest in ((_DEAR, _USUAL_NAME), (0, LONGEST_NAME)):
        for column in sorted(COLUMNS, key=lambda column: -column.keep):
            if column.keep >= least and column.title not in widths and column.width < spare:
                widths[column.title] = column.width
                spare -= column.width + 1
        if TENANT in widths:
            longer = min(spare, max(0, min(name, longest) - widths[TENANT]))
            widths[TENANT] += longer
            spare -= longer
    if QUEUE_SPARK in widths:
        drift = spare // 3 if DRIFT_SPARK in widths else 0
        widths[QUEUE_SPARK] += spare - drift
        if drift:
            widths[DRIFT_SPARK] += drift
    elif TENANT in widths:
        widths[TENANT] += min(spare, 18)
    return tuple((column, widths[column.title]) for column in COLUMNS if column.title in widths)
