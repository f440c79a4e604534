"""The OpenAPI file says what the code does: addresses, methods and parameters."""

from __future__ import annotations

import json
import re
from pathlib import Path

from gateway_kit import serving

from scheduler.gateway.openapi import document
from scheduler.gateway.params import CHAT, COMPLETION, NEUTRAL
from scheduler.gateway.response import REQUEST_ID

FILE = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def test_the_file_is_up_to_date() -> None:
    assert json.loads(FILE.read_text()) == document(), (
        "python -m scheduler.gateway.openapi > docs/openapi.json"
    )


async def test_every_route_is_described_and_nothing_else(tmp_path: Path) -> None:
    async with serving(journal=tmp_path / "jobs.sqlite") as served:
        routes = {
            (route.method.lower(), re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.resource.canonical))
            for route in served.gateway.app.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    described = {(method, path) for path, methods in document()["paths"].items() for method in methods}
    assert described == routes


def test_every_answer_under_v1_has_an_id() -> None:
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            told = [REQUEST_ID in response.get("headers", {}) for response in operation["responses"].values()]
            assert set(told) == {path.startswith("/v1/")}, path


def test_every_parameter_is_described() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["Completion"]["properties"].keys() == COMPLETION.keys() | NEUTRAL.keys()
    assert schemas["Chat"]["properties"].keys() == CHAT.keys() | NEUTRAL.keys()
