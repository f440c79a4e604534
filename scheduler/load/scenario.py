"""Scenario files: found, read, checked, and every error given with its file, line and path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from scheduler.load.checks import cross_check
from scheduler.load.schema import Scenario
from scheduler.load.yamlfile import (
    Document,
    Loc,
    Problem,
    ScenarioError,
    did_you_mean,
    dotted,
    kind_of,
    no_file,
    read_yaml,
)

__all__ = ["Scenario", "ScenarioError", "load_scenario", "read_scenario", "shipped_scenarios"]

_SHIPPED = files("scheduler") / "scenarios"


S = TypeVar("S", bound=Scenario)


def load_scenario(path_or_name: str) -> Scenario:
    """A file's path, or else the name of a shipped scenario. Raises ScenarioError with all that is wrong."""
    what = no_file(path_or_name)
    if what is None:
        return read_scenario(Path(path_or_name), path_or_name, Scenario)
    names = _shipped_names()
    if path_or_name in names:
        with as_file(_SHIPPED) as folder:
            return read_scenario(folder / f"{path_or_name}.yaml", f"{path_or_name}.yaml", Scenario)
    if what == "no such file":
        what += " and no shipped scenario of this name"
    shown = path_or_name if path_or_name.isprintable() else ascii(path_or_name)
    raise ScenarioError.of_file(shown, f"{what}; {did_you_mean(path_or_name, names)}")


def shipped_scenarios() -> dict[str, str]:
    """Name -> one line, of the scenarios that come with the package."""
    with as_file(_SHIPPED) as folder:
        read = {name: read_yaml(folder / f"{name}.yaml", f"{name}.yaml").data for name in _shipped_names()}
    return {name: str(data.get("description", "")) for name, data in read.items()}


def _shipped_names() -> list[str]:
    return sorted(entry.name[: -len(".yaml")] for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))


def read_scenario(path: Path, shown: str, model: type[S]) -> S:
    """One file as ``model``; ``shown`` is its name in errors. Raises ScenarioError with all that is wrong."""
    document = read_yaml(path, shown)
    problems = list(document.problems)
    if not isinstance(document.data, dict):
        problems.append(document.problem((), f"must be a mapping, got {kind_of(document.data)}"))
        raise ScenarioError(problems)
    scenario = None
    context = {"folder": path.parent, "document": document}
    try:
        scenario = model.model_validate(document.data, context=context)
    except ValidationError as error:
        found = (_explain(document, details, model) for details in error.errors(include_url=False))
        problems += [problem for problem in found if problem is not None]
    for loc, what in cross_check(document.data, context):
        while loc not in document.lines:
            loc = loc[:-1]
        if not document.is_suspect(loc):
            problems.append(document.problem(loc, what))
    if problems or scenario is None:
        raise ScenarioError(problems)
    return scenario


def _explain(document: Document, details: ErrorDetails, model: type[Scenario]) -> Problem | None:
    """One of pydantic's errors in our words; None where the value is a known problem already."""
    loc: Loc = tuple(part for part in details["loc"] if part != "[key]")
    if document.is_suspect(loc):
        return None
    return document.problem(loc, _in_words(details, loc, model))


def first_fault(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Of what pydantic found in a ``model``: where, and what is wrong."""
    details = error.errors(include_url=False)[0]
    return dotted(details["loc"]), _in_words(details, details["loc"], model)


def _in_words(details: ErrorDetails, loc: Loc, model: type[BaseModel]) -> str:
    """What pydantic found at ``loc`` of ``model``: what is wrong, and what is allowed."""
    ctx, given = details.get("ctx", {}), kind_of(details["input"])
    match details["type"]:
        case "extra_forbidden":
            tail = did_you_mean(loc[-1], _keys(model, loc[:-1]))
            return f"unknown key; {tail}{'' if tail.endswith('?') else _home(model, loc)}"
        case "missing":
            return "is required"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", str(ctx["expected"])) or [str(ctx["expected"]).lower()]
            return f"got {given}; {did_you_mean(details['input'], allowed)}"
        case "value_error":
            return str(ctx["error"])
        case "greater_than":
            return f"must be above {ctx['gt']:g}, got {given}"
        case "greater_than_equal":
            return f"must be at least {ctx['ge']:g}, got {given}"
        case "less_than_equal":
            return f"must be at most {ctx['le']:g}, got {given}"
        case "model_type" | "model_attributes_type":
            return f"must be a mapping, got {given}; allowed: {', '.join(_keys(model, loc))}"
        case kind if kind in _WANTED:
            return f"must be {_WANTED[kind]}, got {given}"
        case _:
            return f"{details['msg'][:1].lower()}{details['msg'][1:]}, got {given}"


_WANTED: Mapping[str, str] = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list, with `- ` before each entry",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
}


def _home(model: type[BaseModel], loc: Loc) -> str:
    """Where the key at ``loc`` belongs, if it stands one level too high."""
    outer = _section(model, loc[:-1])
    inner = [key for key in _keys(outer, ()) if (found := _field(outer, key)) and loc[-1] in _keys(found, ())]
    return f"; it is a key of {' and of '.join(map(repr, inner))}" if inner else ""


def _keys(model: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that the section at ``loc`` may have."""
    return [field.alias or name for name, field in _section(model, loc).model_fields.items()]


def _section(model: type[BaseModel], loc: Loc) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str) and (found := _field(model, part)) is not None:
            model = found
    return model


def _field(section: type[BaseModel], key: str) -> type[BaseModel] | None:
    for name, field in section.model_fields.items():
        if key == (field.alias or name):
            return next(_models(field.annotation), None)
    return None


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside an annotation: of ``tuple[Stream, ...]``, of ``Trace | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
