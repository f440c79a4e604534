"""What a scenario's sections must agree on: names that are used exist, orders are possible, files are usable.

Works on the plain data, section by section, so that one bad value elsewhere does not hide what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from pydantic import ValidationError

from scheduler.core.estimators import ESTIMATORS
from scheduler.core.types import TIERS
from scheduler.load.samples import read_samples
from scheduler.load.stream import Stream
from scheduler.load.traces import TraceError, scan
from scheduler.load.yamlfile import Loc, did_you_mean
from scheduler.record.expect import parse_expect
from scheduler.record.paths import valid_paths

Found = tuple[Loc, str]

_ESTIMATOR_OF = {"calibrate": "paper", "statistic": "tenant", "embeddings": "learned"}


def cross_check(data: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[Found]:
    """Everything that is wrong between sections, as (location, what)."""
    tenants = _tenants(data)
    streams = list(_streams(data, context))
    yield from _duplicates(data, "tenants")
    yield from _duplicates(data, "load")
    if tenants:
        yield from _unknown_tenants(data, tenants)
    yield from _estimators(data)
    yield from _reservation(data)
    yield from _orders(streams)
    yield from _files(tenants, streams)
    tiers = _tiers(data, streams)
    yield from _rules(data, tiers)
    yield from _expectations(data, tenants, tiers)


def _items(data: Mapping[str, Any], key: str) -> Iterator[tuple[int, Any]]:
    items = data.get(key)
    return enumerate(items) if isinstance(items, tuple) else iter(())


def _tenants(data: Mapping[str, Any]) -> list[str]:
    """Their names, each once."""
    items = (item for _, item in _items(data, "tenants") if isinstance(item, dict))
    return list(dict.fromkeys(name for item in items if isinstance(name := item.get("name"), str)))


def _streams(data: Mapping[str, Any], context: Mapping[str, Any]) -> Iterator[tuple[int, Stream]]:
    """Those that are right in themselves, with their places."""
    for index, item in _items(data, "load"):
        try:
            yield index, Stream.model_validate(item, context=dict(context))
        except ValidationError:
            continue  # reported with the whole


def _duplicates(data: Mapping[str, Any], key: str) -> Iterator[Found]:
    seen: set[str] = set()
    for index, item in _items(data, key):
        name = item.get("name") if isinstance(item, dict) else None
        if isinstance(name, str):
            if name in seen:
                yield (key, index, "name"), f"the name {name!r:.60} is taken, each needs its own"
            seen.add(name)


def _unknown_tenants(data: Mapping[str, Any], tenants: list[str]) -> Iterator[Found]:
    used: list[tuple[Loc, object]] = []
    for index, item in _items(data, "load"):
        shares = item.get("tenant") if isinstance(item, dict) else None
        names = shares if isinstance(shares, dict) else [shares]
        used += [(("load", index, "tenant", name), name) for name in names if isinstance(name, str)]
    for index, item in _items(data, "timeline"):
        for section, key in (("burst", "tenant"), ("drift", "tenant"), ("tenant", "name")):
            inner = item.get(section) if isinstance(item, dict) else None
            used.append(
                (("timeline", index, section, key), inner.get(key) if isinstance(inner, dict) else None)
            )
    for loc, name in used:
        if isinstance(name, str) and name not in tenants:
            yield loc, f"unknown tenant {name!r:.60}; {did_you_mean(name, tenants)}"


def _estimators(data: Mapping[str, Any]) -> Iterator[Found]:
    """A switch that sets an option of another kind. The scenario's own are for all that it may go over to."""
    own = data.get("estimator")
    first = own.get("kind", "paper") if isinstance(own, dict) else own or "paper"
    for index, item in _items(data, "timeline"):
        said = item.get("estimator") if isinstance(item, dict) else None
        if not isinstance(said, dict):
            continue
        kind = said.get("kind", first)
        if not isinstance(kind, str) or kind not in ESTIMATORS:
            continue  # reported as that
        allowed = ", ".join(name for name, of in _ESTIMATOR_OF.items() if of == kind) or "none"
        for option, of in _ESTIMATOR_OF.items():
            if option in said and of != kind:
                what = f"an option of {of}, not of {kind}; allowed for {kind}: {allowed}"
                yield ("timeline", index, "estimator", option), what


def _reservation(data: Mapping[str, Any]) -> Iterator[Found]:
    dispatch = data.get("dispatch")
    if data.get("max_inflight_tokens") is not None and isinstance(dispatch, dict) and dispatch:
        why = "a micro-batch starts as a whole and reserves nothing"
        yield ("max_inflight_tokens",), f"{why}: leave this out, or use `dispatch: continuous`"


def _orders(streams: list[tuple[int, Stream]]) -> Iterator[Found]:
    """``after`` names a stream, and no chain of them comes back to where it began."""
    places = {stream.name: index for index, stream in streams if stream.name}
    waits_for = TopologicalSorter[int]()
    for index, stream in streams:
        if stream.name == "drained":
            yield ("load", index, "name"), "`drained` has a meaning of its own in `after`: take another name"
        if stream.after == "drained":
            waits_for.add(index, *(above for above, _ in streams if above < index))
        elif stream.after in places:
            waits_for.add(index, places[stream.after])
        elif stream.after is not None:
            allowed = ["drained", *(name for name in places if name != stream.name)]
            what = f"no stream is named {stream.after!r:.60}; {did_you_mean(stream.after, allowed)}"
            yield ("load", index, "after"), what
    try:
        waits_for.prepare()
    except CycleError as error:
        circle = error.args[1][::-1]
        names = {index: stream.name or f"load.{index}" for index, stream in streams}
        chain = " after ".join(names[index] for index in circle)
        yield ("load", circle[0], "after"), f"the streams wait for each other: {chain:.200}"


def _files(tenants: list[str], streams: list[tuple[int, Stream]]) -> Iterator[Found]:
    for index, stream in streams:
        if stream.trace:
            try:
                scan(stream.trace, None if stream.tenant else frozenset(tenants))
            except TraceError as error:
                yield ("load", index, "trace"), str(error)
        model = stream.lengths.model if stream.lengths else None
        for key, section, needed in (
            ("lengths", stream.lengths, "output_tokens"),
            ("prompts", stream.prompts, "prompt"),
        ):
            if section and section.file:
                try:
                    read_samples(section.file, needed, model)
                except ValueError as error:
                    yield ("load", index, key), str(error)


def _tiers(data: Mapping[str, Any], streams: list[tuple[int, Stream]]) -> list[str]:
    """Those that requests may be of; all where a trace's rows may say one, or a tenant's is wrong."""
    tiers = [item.get("tier", "standard") for _, item in _items(data, "tenants") if isinstance(item, dict)]
    in_rows = any(stream.trace and stream.trace.format == "jsonl" for _, stream in streams)
    known = all(tier in TIERS for tier in tiers) and not in_rows
    return [tier for tier in TIERS if tier in tiers or not known]


def _rules(data: Mapping[str, Any], tiers: list[str]) -> Iterator[Found]:
    """A figure of a tier that no request is of never is there: its rule would be silent for ever."""
    guard, policy = data.get("guard"), data.get("policy")
    auto = policy.get("auto") if isinstance(policy, dict) else None
    named: list[tuple[Loc, object]] = []
    if isinstance(guard, dict):
        named.append((("guard", "when"), guard.get("when")))
    if isinstance(auto, dict):
        named.append((("policy", "auto", "minimise"), auto.get("minimise")))
        bounds = auto.get("subject_to")
        if isinstance(bounds, tuple):
            named += [(("policy", "auto", "subject_to", index), bound) for index, bound in enumerate(bounds)]
    if not data.get("load"):
        return  # a server's clients may ask for a lower tier than their own, and tenants may come later
    for loc, text in named:
        found = re.match(r"\s*(?:latency_s\.)?tiers\.(\w+)\.", text) if isinstance(text, str) else None
        if found and found[1] in TIERS and found[1] not in tiers:
            yield loc, f"no tenant is of the tier {found[1]!r}; {did_you_mean(found[1], tiers)}"


def _expectations(data: Mapping[str, Any], tenants: list[str], tiers: list[str]) -> Iterator[Found]:
    paths = valid_paths(tenants, tiers)
    for index, text in _items(data, "expect"):
        if isinstance(text, str):
            try:
                parse_expect(text, paths)
            except ValueError as error:
                yield ("expect", index), str(error)
