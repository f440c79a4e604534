"""The fields that sections share: names, numbers, durations, files, and words that stand for a section.

Shapes that may be written in two ways (``tenant: acme`` or ``tenant: {acme: 1}``) are brought to one before
they are checked, so the location of an error is always a place in the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from scheduler.core.durations import parse_duration
from scheduler.core.estimate import BASE_TOKENS
from scheduler.core.policies import policy_from
from scheduler.core.text import is_unsafe
from scheduler.load.yamlfile import did_you_mean, kind_of, no_file
from scheduler.twin.profile_file import load_profile, profiles

MAX_TOKENS = 1_000_000
MAX_RATE = 1e6  # requests per second
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6  # of a tenant: what it was served is divided by it, and squared
EMBEDDING_FILES = ("config.json", "tokenizer.json", "model.safetensors")


class Section(BaseModel):
    """What every section is."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _name(value: str) -> str:
    if not value.strip() or value != value.strip() or len(value) > 64:
        raise ValueError("must be 1 to 64 characters, with no space at the ends")
    if any(map(is_unsafe, value)):
        raise ValueError(
            "holds a control or invisible character; letters, digits and punctuation are allowed"
        )
    return value


def _file(value: str, info: ValidationInfo) -> str:
    path = beside(value, info)
    if what := no_file(path):
        raise ValueError(f"{what}: {value!r:.200}; paths are relative to the scenario file")
    return path


def beside(value: str, info: ValidationInfo) -> str:
    """Paths are relative to the file that names them; the result is absolute."""
    return str((Path((info.context or {}).get("folder", ".")) / os.path.expanduser(value)).absolute())


def gpu_profile(value: str, info: ValidationInfo) -> str:
    """A GPU that ships stays a name; ``something.yaml`` is a file with a profile."""
    if value.endswith((".yaml", ".yml")):
        path = _file(value, info)
        load_profile(path)
        return path
    gpus = sorted({name.split("/")[0] for name in profiles()})
    if value not in gpus:
        raise ValueError(f"no GPU {value!r:.60}; {did_you_mean(value, [*gpus, 'FILE.yaml'])}")
    return value


def model_path(value: str, info: ValidationInfo) -> str:
    """A folder beside the scenario is a path; a shipped or Hugging Face name stays a name."""
    if not value.startswith((".", "/", "~")):
        return value
    path = beside(value, info)
    if not Path(path).is_dir():
        raise ValueError(f"no such folder: {value!r:.200}; paths are relative to the scenario file")
    return path


def embedding_path(value: str, info: ValidationInfo) -> str:
    """``minilm`` stays a name: a run finds it. All else is a folder with its files."""
    if value == "minilm":
        return value
    folder = beside(value, info)
    if missing := [name for name in EMBEDDING_FILES if not (Path(folder) / name).is_file()]:
        files = ", ".join(EMBEDDING_FILES)
        raise ValueError(
            f"{value!r:.200} has no {', '.join(missing)}; allowed: minilm, or a folder with {files}; "
            "paths are relative to the scenario file"
        )
    return folder


def policy_spec(value: object) -> str:
    """A policy by its name or mapping, with all its parameters, as text."""
    if not isinstance(value, str | Mapping):
        raise ValueError("must be a policy's name, or {name: aging, rate: 0.01}")
    if isinstance(value, Mapping) and "name" not in value:
        auto = "; auto is for the scenario's own `policy`, and alone there" if "auto" in value else ""
        raise ValueError(f"a policy's `name` is needed, such as {{name: aging, rate: 0.01}}{auto}")
    return policy_from(value).describe()


def not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("must not be empty")
    return value


def some_share(value: Mapping[str, float]) -> Mapping[str, float]:
    if not any(share > 0 for share in value.values()):
        raise ValueError("at least one share must be above 0")
    return value


def tokens_by_category(value: object) -> object:
    if value == "base":
        return dict(BASE_TOKENS)
    if isinstance(value, Mapping):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        allowed = f"`base`, a whole number from 1 to {MAX_TOKENS}, or one for each category"
        raise ValueError(f"must be {allowed}, got {value!r:.60}")
    return dict.fromkeys(BASE_TOKENS, value)


def _by_tenant(value: object) -> object:
    if isinstance(value, str):
        return {value: 1.0}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a tenant's name, or several with their shares, got {kind_of(value)}")
    return value


def _some_time(value: float) -> float:
    if value <= 0:
        raise ValueError("must be above 0: what may not wait at all never runs; leave it out for no bound")
    return value


def exactly_one(section: BaseModel, *names: str) -> None:
    """Raise ValueError unless one of these fields, and one only, is given."""
    keys = {name: type(section).model_fields[name].alias or name for name in names}
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        got = ", ".join(keys[name] for name in given) or "none"
        raise ValueError(f"exactly one of {', '.join(keys.values())} is needed, got {got}")


Name = Annotated[str, AfterValidator(_name)]
FilePath = Annotated[str, AfterValidator(_file)]
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
TimeToLive = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_some_time)]
Rate = Annotated[float, Field(ge=0, le=MAX_RATE)]
SomeRate = Annotated[float, Field(gt=0, le=MAX_RATE)]
Portion = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=MIN_WEIGHT, le=MAX_WEIGHT)]
MAX_COUNT = 10**18 - 1  # run folders hold no longer numbers; JSON may, beyond any float
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
PolicySpec = Annotated[str, BeforeValidator(policy_spec)]
TenantShares = Annotated[
    dict[str, Portion],
    BeforeValidator(_by_tenant),
    AfterValidator(some_share),
]


def or_section(word: str, section: dict[str, Any], such_as: str) -> BeforeValidator:
    """Let one word stand for a section; ``such_as`` is one as it may be written."""

    def expand(value: object) -> object:
        if value == word:
            return section
        if not isinstance(value, Mapping | Section):
            raise ValueError(f"must be `{word}` or a mapping such as {such_as}, got {kind_of(value)}")
        return value

    return BeforeValidator(expand)
