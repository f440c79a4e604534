"""What every bench returns, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from scheduler.live.output import printable

SCHEMA = 1


class BenchError(RuntimeError):
    """A bench could not be run to its end; says why."""


class BadInput(BenchError):
    """A file that a bench was given is not what it needs; says where and what."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A figure held against a target. ``ok`` says whether it was reached in this run."""

    id: str
    target: float
    ours: float
    ok: bool
    tolerance: float = 0.0
    paper: float | None = None
    needs: str = ""  # what it takes for this to hold

    @classmethod
    def at_most(cls, id: str, target: float, ours: float) -> Claim:
        return cls(id, target, ours, ours <= target)

    @classmethod
    def at_least(cls, id: str, target: float, ours: float) -> Claim:
        return cls(id, target, ours, ours >= target)


@dataclass(frozen=True, slots=True)
class Result:
    """Rows of figures, claims on them, and how they were measured."""

    bench: str
    protocol: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As ``--json`` prints it."""
        return {
            "schema": SCHEMA,
            "bench": self.bench,
            "rows": self.rows,
            "claims": [asdict(claim) for claim in self.claims],
            "protocol": self.protocol,
        }

    def text(self) -> str:
        """For people: rows as tables (one for each set of columns), claims, protocol."""
        lines: list[str] = []
        columns: tuple[str, ...] = ()
        for row in self.rows:
            if tuple(row) != columns:
                columns = tuple(row)
                lines += ["", "  ".join(f"{name:>14}" for name in columns)]
            lines.append("  ".join(f"{_cell(value):>14}" for value in row.values()))
        lines.append("")
        for claim in self.claims:
            verdict = "reached" if claim.ok else "NOT reached"
            aim = f"target {_cell(claim.target)}"
            if claim.paper is not None:
                aim = f"paper {_cell(claim.paper)}, tolerance {_cell(claim.tolerance)}"
            lines.append(f"{claim.id}: {_cell(claim.ours)} ({aim}): {verdict}")
            if claim.needs:
                lines.append(f"    needs {claim.needs}")
        return "\n".join([*lines, "", self.protocol])


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, dict):
        if value.keys() == {"median", "min", "max"}:
            return f"{_cell(value['median'])} [{_cell(value['min'])} {_cell(value['max'])}]"
        return "/".join(_cell(item) for item in value.values())
    return printable(str(value))  # the name of a model or a file, from outside
