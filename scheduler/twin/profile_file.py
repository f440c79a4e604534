"""Profiles as small data files with their provenance: those that ship, and an operator's own."""

from __future__ import annotations

from functools import cache
from importlib import resources
from math import inf
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scheduler.load.yamlfile import read_yaml
from scheduler.twin.profile import Profile

_NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_AtLeastOne = Annotated[int, Field(ge=1)]


class _Step(BaseModel):
    """The ``step`` block of a profile file, in the units its keys name."""

    model_config = ConfigDict(extra="forbid")

    floor_ms: _NonNegative = 0.0
    fixed_ms: _NonNegative
    per_context_token_us: _NonNegative = 0.0
    per_sequence_us: _NonNegative = 0.0
    batch_knee: Annotated[float, Field(ge=1.0)] = inf
    per_sequence_above_us: _NonNegative = 0.0
    per_prefill_token_us: _NonNegative = 0.0
    prefill_knee: Annotated[float, Field(ge=1.0)] = inf
    per_prefill_token_above_us: _NonNegative = 0.0

    @model_validator(mode="after")
    def _takes_time(self) -> _Step:
        if max(self.floor_ms, self.fixed_ms) <= 0.0:
            raise ValueError("floor_ms or fixed_ms must be above 0: a step cannot take no time")
        return self


class _File(BaseModel):
    """A profile file."""

    model_config = ConfigDict(extra="forbid")

    gpu: str
    model: str
    detail: str
    step: _Step
    kv_tokens: _AtLeastOne
    max_model_len: _AtLeastOne
    max_num_batched_tokens: _AtLeastOne
    provenance: str


def load_profile(gpu: str, model: str = "") -> Profile:
    """The profile that ships for ``gpu`` and ``model``, or the one in the YAML file that ``gpu`` names.

    Raises ValueError, naming what ships, or the lines of the file and what is wrong in them.
    """
    if gpu.endswith((".yaml", ".yml")):
        return _read(Path(gpu), gpu)
    profile = _shipped().get(f"{gpu}/{model}")
    if profile is None:
        raise ValueError(
            f"no profile for gpu {gpu!r} with model {model!r}; allowed: {', '.join(profiles())}, "
            "or the path of a .yaml file as gpu"
        )
    return profile


def profile_text(profile: Profile) -> str:
    """The profile as a file that ``load_profile`` reads."""
    document = {name: getattr(profile, name, None) for name in _File.model_fields}
    document["step"] = {name: cost for name, cost in step_costs(profile).items() if cost < inf}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def step_costs(profile: Profile) -> dict[str, float]:
    """What a step costs, by the names and in the units of the file; a knee that is none is inf."""
    names = ((name, *_in_profile(name)) for name in _Step.model_fields)
    return {name: getattr(profile, seconds) * per_s for name, seconds, per_s in names}


def _in_profile(name: str) -> tuple[str, float]:
    """What a Profile calls a field of ``_Step``, and how many of the file's units are one of its own."""
    stem, _, unit = name.rpartition("_")
    per_s = {"ms": 1e3, "us": 1e6}.get(unit)
    return (name, 1.0) if per_s is None else (f"{stem}_s", per_s)


def profiles() -> list[str]:
    """Names ("gpu/model") of the profiles that ship."""
    return sorted(_shipped())


@cache
def _shipped() -> dict[str, Profile]:
    with resources.as_file(resources.files("scheduler.twin") / "profiles") as folder:
        found = [_read(path, path.name) for path in folder.glob("*.yaml")]
    return {profile.name: profile for profile in found}


def _read(path: Path, shown: str) -> Profile:
    document = read_yaml(path, shown)
    problems, file = list(document.problems), None
    try:
        file = _File.model_validate(document.data)
    except ValidationError as error:
        found = [(fault["loc"], fault["msg"]) for fault in error.errors()]
        problems += [document.problem(loc, what) for loc, what in found if not document.is_suspect(loc)]
    if problems or file is None:
        raise ValueError("; ".join(map(str, problems)))
    fields = file.model_dump(exclude={"step"})
    for name, value in file.step:
        seconds, per_s = _in_profile(name)
        fields[seconds] = value / per_s
    return Profile(**fields)
