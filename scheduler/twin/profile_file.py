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
    provenance: str
    step: _Step
    kv_tokens: _AtLeastOne
    max_model_len: _AtLeastOne
    max_num_batched_tokens: _AtLeastOne


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
    step = {
        "floor_ms": profile.floor_s * 1e3,
        "fixed_ms": profile.fixed_s * 1e3,
        "per_context_token_us": profile.per_context_token_s * 1e6,
        "per_sequence_us": profile.per_sequence_s * 1e6,
        "per_prefill_token_us": profile.per_prefill_token_s * 1e6,
    }
    if profile.batch_knee < inf:
        above_us = profile.per_sequence_above_s * 1e6
        step |= {"batch_knee": profile.batch_knee, "per_sequence_above_us": above_us}
    if profile.prefill_knee < inf:
        above_us = profile.per_prefill_token_above_s * 1e6
        step |= {"prefill_knee": profile.prefill_knee, "per_prefill_token_above_us": above_us}
    document = {
        "gpu": profile.gpu,
        "model": profile.model,
        "detail": profile.detail,
        "step": step,
        "kv_tokens": profile.kv_tokens,
        "max_model_len": profile.max_model_len,
        "max_num_batched_tokens": profile.max_num_batched_tokens,
        "provenance": profile.provenance,
    }
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


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
    step = file.step
    return Profile(
        gpu=file.gpu,
        model=file.model,
        detail=file.detail,
        provenance=file.provenance,
        kv_tokens=file.kv_tokens,
        max_model_len=file.max_model_len,
        max_num_batched_tokens=file.max_num_batched_tokens,
        fixed_s=step.fixed_ms / 1e3,
        floor_s=step.floor_ms / 1e3,
        per_context_token_s=step.per_context_token_us / 1e6,
        per_sequence_s=step.per_sequence_us / 1e6,
        batch_knee=step.batch_knee,
        per_sequence_above_s=step.per_sequence_above_us / 1e6,
        per_prefill_token_s=step.per_prefill_token_us / 1e6,
        prefill_knee=step.prefill_knee,
        per_prefill_token_above_s=step.per_prefill_token_above_us / 1e6,
    )
