"""The config of ``serve``: a scenario without load, and who may come in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from scheduler.gateway.keys import DEFAULT_TENANT, BadKey, digest
from scheduler.load.fields import beside
from scheduler.load.scenario import ScenarioError, read_scenario
from scheduler.load.schema import EngineSection, Scenario, TenantSection
from scheduler.load.stream import Stream
from scheduler.load.yamlfile import did_you_mean, no_file


def _no_load(value: object) -> object:
    if value:
        raise ValueError("serve gets its load from clients; a scenario is started through the control API")
    return value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _spec(value: str) -> str:
    """Looks right; whether the environment has it is seen when the server starts."""
    try:
        if not value.startswith("env:"):
            digest(value, "a key")
    except BadKey as error:
        raise ValueError(str(error)) from error
    return value


KeySpecs = Annotated[tuple[Annotated[str, AfterValidator(_spec)], ...], BeforeValidator(_listed)]


class ServeConfig(Scenario):
    """A scenario without ``load`` and with keys."""

    load: Annotated[tuple[Stream, ...], BeforeValidator(_no_load)] = ()
    keys: dict[str, KeySpecs] = {}  # noqa: RUF012 (pydantic copies it)
    """Tenant -> its API keys: env:NAME, or sha256: and the hexadecimal digest; one or a list."""
    journal: Annotated[str, AfterValidator(beside)] | None = None
    """The file of the durable jobs, relative to the config; without one there are no jobs."""
    operator: KeySpecs = ()
    """Keys of the control API and of /metrics, written the same way."""


def default_config() -> ServeConfig:
    """One tenant, ``default``, in arrival order; vLLM where a model is given, else the simulated engine."""
    return ServeConfig(
        name="serve", engine=EngineSection(kind="auto"), tenants=(TenantSection(name=DEFAULT_TENANT),)
    )


def load_config(path: str) -> ServeConfig:
    """Raises ScenarioError with all that is wrong."""
    if what := no_file(path):
        shown = path if path.isprintable() else ascii(path)
        raise ScenarioError.of_file(shown, what)
    config = read_scenario(Path(path), path, ServeConfig)
    names = [tenant.name for tenant in config.tenants]
    for name in config.keys:
        if name not in names:
            raise config.error(("keys", name), f"unknown tenant; {did_you_mean(name, names)}")
    return config
