"""Run folders read back: what a report needs of run.json, metrics.csv and queue_depth.csv."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.core.types import runtime_class
from scheduler.record.document import run_json
from scheduler.record.errors import MALFORMED, FolderError, why

_MOST = 1e300  # a number in JSON may have more digits than a float can hold


@dataclass(frozen=True)
class Row:
    """One finished request of metrics.csv."""

    tenant: str
    tier: str
    category: str  # the estimator's
    ended_s: float
    e2e_s: float
    engine_s: float
    estimated: float
    actual: int
    input_tokens: float
    bias: float  # after learning from it

    @property
    def classes(self) -> tuple[str, str]:
        """Runtime class by the estimate, and by the truth."""
        return runtime_class(self.input_tokens + self.estimated), runtime_class(
            self.input_tokens + self.actual
        )


@dataclass(frozen=True)
class RunFolder:
    """A recorded run."""

    name: str
    document: dict[str, Any]
    rows: list[Row]
    depth: dict[str, list[float]]  # column -> its cells

    def told(self, *path: str) -> Any:
        """What run.json has there. Raises FolderError."""
        found: Any = self.document
        for key in path:
            if not isinstance(found, dict) or key not in found:
                raise FolderError(f"{self.name}: its run.json has no {'.'.join(path)}")
            found = found[key]
        return found

    def number(self, *path: str) -> float | None:
        """A figure; None where there is none. Raises FolderError."""
        found = self.told(*path)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < _MOST:
            raise FolderError(f"{self.name}: {'.'.join(path)} in its run.json is no number to show")
        return found

    def names(self, *path: str) -> list[str]:
        """What has figures there: tenants, tiers. Raises FolderError."""
        found = self.told(*path)
        if not isinstance(found, dict):
            raise FolderError(f"{self.name}: {'.'.join(path)} in its run.json names nothing")
        return list(found)

    @property
    def policy(self) -> str:
        """The policy at the start and, where it was switched, the last one: what no one policy did alone."""
        try:
            later = [str(switch["to"]) for switch in self.document.get("switches", ())]
        except MALFORMED as error:
            raise FolderError(f"{self.name}: switches in its run.json: {why(error)}") from error
        if len(later) > 1:
            later = ["…", later[-1]]
        return " → ".join([str(self.told("policy")), *later])

    @property
    def static(self) -> bool:
        return bool(self.told("dispatch") != "continuous")

    @property
    def counter(self) -> str:
        return str(self.told("counter"))

    @property
    def calibrated(self) -> bool:
        return bool(self.told("calibrated"))

    @property
    def simulated(self) -> bool:
        return bool(self.told("engine") == "sim")


def read_folders(paths: Sequence[Path]) -> list[RunFolder]:
    """Each path is a run folder, or holds some; in order of their names, each once. Raises FolderError."""
    found: dict[Path, Path] = {}  # where it really is -> as it was given
    for path in paths:
        inside = (
            [path] if (path / "run.json").is_file() else sorted(p.parent for p in path.glob("*/run.json"))
        )
        if not inside:
            raise FolderError(
                f"{path}: no run.json in it or one level below; `--out DIR` of a run writes one at its end"
            )
        found |= {folder.resolve(): folder for folder in inside}
    names = Counter(place.name for place in found)
    return [
        read_folder(folder, place.name if names[place.name] == 1 else str(folder))
        for place, folder in found.items()
    ]


def read_folder(path: Path, name: str) -> RunFolder:
    """Raises FolderError."""
    place = path / "run.json"
    try:
        document = run_json(json.loads(place.read_text(encoding="utf-8")))
        place = path / "metrics.csv"
        with open(place, newline="", encoding="utf-8") as file:
            rows = list(_rows(csv.DictReader(file)))
        place = path / "queue_depth.csv"
        with open(place, newline="", encoding="utf-8") as file:
            columns = zip(*csv.reader(file), strict=True)
            depth = {column: [float(cell) for cell in cells] for column, *cells in columns}
        _ = depth["elapsed_seconds"]
        return RunFolder(name, document, rows, depth)
    except (OSError, *MALFORMED) as error:
        raise FolderError(f"not a whole run folder: {place}: {why(error)}") from error


def _rows(lines: Iterable[dict[str, str]]) -> Iterable[Row]:
    for line in lines:
        if line["status"] == "finished":
            budget, estimated = _finite(line["total_token_budget"]), _finite(line["estimated_output_tokens"])
            yield Row(
                line["tenant_id"],
                line["priority_tier"],
                line["workload_category"],
                _finite(line["worker_finish_time"]),
                _finite(line["end_to_end_seconds"]),
                _finite(line["inference_seconds"]),
                estimated,
                int(_finite(line["generated_tokens"])),
                budget - estimated,
                _finite(line["feedback_new_bias"]),
            )


def _finite(cell: str) -> float:
    """Raises ValueError for what cannot be drawn."""
    if not abs(number := float(cell)) < _MOST:
        raise ValueError(f"{cell!r:.40} is no number to show")
    return number
