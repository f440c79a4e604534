"""The OpenAPI description of the gateway, kept beside the code it describes.

``python -m scheduler.gateway.openapi > docs/openapi.json`` writes the file; a test compares file, routes and
this.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from scheduler.core.estimators import LIVE_ESTIMATORS
from scheduler.core.types import TIERS
from scheduler.gateway.completions import DEADLINE, PRIORITY
from scheduler.gateway.control import BY
from scheduler.gateway.jobs import IDEMPOTENCY_KEY, KEY
from scheduler.gateway.params import MAX_STOP_CHARS, MAX_STOPS, NEUTRAL, ROLES
from scheduler.gateway.response import REQUEST_ID
from scheduler.load.fields import MAX_COUNT, MAX_WEIGHT, MIN_WEIGHT

Json = dict[str, Any]

_NEEDED = {"policy", "estimator", "scenario", "tenant", "rate", "seconds"}
"""Of the control API's parameters."""

_NOT_NOW = {
    ("post", "policy/undo"): " 409",
    ("post", "preview"): " 409",
    ("post", "scenario"): " 503",
    ("post", "burst"): " 503",
    ("post", "pause"): " 503",
    ("post", "drain"): " 503",
}
"""Of the control API's verbs: how they are refused when it is not their time."""

_JSON, _TEXT, _EVENTS = "application/json", "text/plain", "text/event-stream"

_ERRORS = {
    "400": "A parameter is wrong or not supported; `param` names it.",
    "401": "The API key is missing or not known.",
    "403": "The key is not allowed to do this.",
    "404": "There is no such thing.",
    "408": "The body did not come in time.",
    "409": "The idempotency key came with another body before; or the run is not in a state for this.",
    "413": "The body, or the prompt and max_tokens together, are too large.",
    "415": "Content-Type must be application/json, with no Content-Encoding.",
    "429": "Full; Retry-After says when to come back.",
    "500": "The engine failed this request.",
    "503": "There is no engine, or not yet, or the server drains; or the journal cannot be written.",
}


def document() -> Json:
    """OpenAPI 3.1."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "DriftSched gateway",
            "version": "1",
            "description": "OpenAI's completions and chats, durable jobs, control, metrics: gateway.md.",
        },
        "security": [{"tenant": []}],
        "paths": {
            "/v1/completions": {"post": _generate("Complete a prompt", "Completion")},
            "/v1/chat/completions": {"post": _generate("Answer a conversation", "Chat")},
            "/v1/models": {"get": _operation("List the model", "401 403")},
            "/v1/models/{model}": {"get": _operation("The model by its name", "401 403 404", path="model")},
            "/v1/jobs": {"post": _post_job()},
            "/v1/jobs/{id}": {
                "get": _operation("A job's state, place and result", "401 403 404 503", path="id"),
                "delete": _operation("Cancel a job", "401 403 404 503", path="id"),
            },
            "/health": {"get": _operation("Does the process answer", "503", key=None)},
            "/ready": {"get": _operation("Are requests accepted", "503", key=None)},
            "/metrics": {"get": _operation("Figures for Prometheus", "401 403", key="operator", kind=_TEXT)},
            **_control(),
        },
        "components": {
            "securitySchemes": {
                "tenant": {"type": "http", "scheme": "bearer", "description": "A tenant's API key."},
                "operator": {"type": "http", "scheme": "bearer", "description": "The operator's key."},
            },
            "headers": {
                "RequestId": {
                    "description": "For logs: the id of the request in the run folder, where there was one.",
                    "required": True,
                    "schema": {"type": "string"},
                }
            },
            "schemas": {
                "Completion": _completion(),
                "Chat": _chat(),
                "Error": _object(
                    {
                        "error": _object(
                            {
                                "message": {"type": "string"},
                                "type": {"type": "string"},
                                "param": {"type": ["string", "null"]},
                                "code": {"type": ["string", "null"]},
                            }
                        )
                    }
                ),
            },
        },
    }


def _control() -> Json:
    steer = "400 401 403 408 413 415"
    policy = {"type": "string", "maxLength": 200, "examples": ["sjf", "aging rate=0.05"]}
    verbs: dict[tuple[str, str], tuple[str, Json]] = {
        ("post", "policy"): ("Swap the policy", {"policy": policy}),
        ("put", "estimator"): (
            "Estimate by another one from now on",
            {"estimator": {"enum": list(LIVE_ESTIMATORS)}},
        ),
        ("post", "preview"): (
            "Predict what these policies would do, or all",
            {"policies": {"type": "array", "maxItems": 32, "items": policy}},
        ),
        ("post", "policy/undo"): ("Back to the policy before", {}),
        ("post", "pause"): ("Dispatch nothing more", {}),
        ("post", "resume"): ("Dispatch again", {}),
        ("post", "scenario"): ("Add the load of a shipped scenario", {"scenario": {"type": "string"}}),
        ("delete", "scenario"): ("Stop all loads", {}),
        ("post", "burst"): (
            "Extra arrivals of one tenant",
            {"tenant": {"type": "string"}, "rate": _positive(), "seconds": _positive()},
        ),
        ("put", "limits"): ("Limits over all tenants", _limits()),
        ("patch", "tenants/{name}"): (
            "Weight or limits of one tenant; what is not named stays, null lifts a limit",
            {"weight": _weight(), "limits": _object({**_limits(), **_rates()}, closed=True)},
        ),
        ("post", "drain"): ("Refuse new requests, or accept them again", {"draining": {"type": "boolean"}}),
    }
    looks = {
        "view": "The whole picture, and the notices after a number",
        "events": "Notices as server-sent events",
        "policies": "Policies by name",
        "preview": "The latest preview, as far as it is",
        "scenarios": "Shipped scenarios by name",
        "estimator": "What was learned about lengths",
    }
    paths: Json = {}
    for name, what in looks.items():
        kind = _EVENTS if name == "events" else _JSON
        operation = _operation(what, "400 401 403", key="operator", kind=kind)
        if name in ("view", "events"):
            after = {"type": "integer", "minimum": 0}
            operation["parameters"] = [{"name": "after", "in": "query", "schema": after}]
        paths[f"/control/{name}"] = {"get": operation}
    for (method, name), (what, fields) in verbs.items():
        path = "name" if "{name}" in name else None
        errors = steer + " 404" * (path is not None) + _NOT_NOW.get((method, name), "")
        operation = _operation(what, errors, key="operator", path=path)
        required = tuple(field for field in fields if field in _NEEDED)
        by = {"type": "string", "pattern": BY}
        body = _object({**fields, "by": by}, closed=True, required=required)
        operation["requestBody"] = _body(body, required=bool(required))
        paths.setdefault(f"/control/{name}", {})[method] = operation
    return paths


def _generate(what: str, schema: str) -> Json:
    operation = _operation(what, "400 401 403 404 408 413 415 429 500 503")
    operation["description"] = "With `stream: true` the answer is server-sent events, the last one [DONE]."
    operation["responses"]["200"]["content"][_EVENTS] = {}
    operation["parameters"] = _headers()
    operation["requestBody"] = _body({"$ref": f"#/components/schemas/{schema}"})
    return operation


def _post_job() -> Json:
    operation = _operation("Promise a completion or a chat", "400 401 403 404 408 409 413 415 429 503")
    operation["responses"]["202"] = {**operation["responses"].pop("200"), "description": "It is on disk."}
    key = {"type": "string", "pattern": f"^{KEY.pattern}$"}
    operation["parameters"] = [*_headers(), {"name": IDEMPOTENCY_KEY, "in": "header", "schema": key}]
    whole = {"properties": {"stream": {"enum": [False, None]}}}
    both = [{"allOf": [{"$ref": f"#/components/schemas/{each}"}, whole]} for each in ("Completion", "Chat")]
    operation["requestBody"] = _body({"oneOf": both})
    return operation


def _operation(
    what: str, errors: str, *, key: str | None = "tenant", path: str | None = None, kind: str = _JSON
) -> Json:
    content: Json = {kind: {}}
    error = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: Json = {
        "summary": what,
        "security": [{key: []}] if key else [],
        "responses": {
            "200": {"description": "OK", "content": content},
            **{code: {"description": _ERRORS[code], "content": error} for code in errors.split()},
        },
    }
    if key == "tenant":  # what is under /v1
        for response in operation["responses"].values():
            response["headers"] = {REQUEST_ID: {"$ref": "#/components/headers/RequestId"}}
    if path:
        operation["parameters"] = [
            {"name": path, "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return operation


def _headers() -> list[Json]:
    return [
        {
            "name": PRIORITY,
            "in": "header",
            "description": "A tier at or below the tenant's own.",
            "schema": {"type": "string", "enum": list(TIERS)},
        },
        {
            "name": DEADLINE,
            "in": "header",
            "description": "Longest time in the queue, such as 30s; past it the request ends with 429.",
            "schema": _duration(),
        },
    ]


def _body(schema: Json, *, required: bool = True) -> Json:
    return {"required": required, "content": {_JSON: {"schema": schema}}}


def _object(properties: Json, *, closed: bool = False, required: tuple[str, ...] = ()) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    if closed:
        schema["additionalProperties"] = False
    if required:
        schema["required"] = list(required)
    return schema


def _sampling() -> Json:
    stop: Json = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
    return {
        "model": {"type": ["string", "null"]},
        "max_tokens": {"type": ["integer", "null"], "minimum": 1},
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
        "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
        "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": MAX_STOPS}, {"type": "null"}]},
        "n": {"enum": [1, None]},
        "stream": {"type": ["boolean", "null"]},
        "stream_options": {
            "type": ["object", "null"],
            "properties": {
                "include_usage": {"type": ["boolean", "null"]},
                "continuous_usage_stats": {"type": ["boolean", "null"]},
            },
            "additionalProperties": False,
        },
        "ignore_eos": {"type": ["boolean", "null"]},
    }


def _asked(text: str, fields: Json) -> Json:
    """A body with this text in it: what is honoured, and what is not but in values that ask for nothing."""
    neutral = {name: {"enum": [*values, None]} for name, values in NEUTRAL.items()}
    schema = _object({**fields, **_sampling(), **neutral}, closed=True, required=(text,))
    options = {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]}
    streamed = {"properties": {"stream": {"const": True}}, "required": ["stream"]}
    forced = {"properties": {"ignore_eos": {"const": True}}, "required": ["ignore_eos"]}
    unstopped: Json = {"properties": {"stop": {"enum": [None, []]}}}
    return {**schema, "allOf": [{"if": options, "then": streamed}, {"if": forced, "then": unstopped}]}


def _completion() -> Json:
    text = {"type": "string", "minLength": 1}
    one = {"type": "array", "items": text, "minItems": 1, "maxItems": 1}
    return _asked("prompt", {"prompt": {"anyOf": [text, one]}})


def _chat() -> Json:
    part = _object(
        {"type": {"const": "text"}, "text": {"type": "string"}}, closed=True, required=("type", "text")
    )
    content = {"anyOf": [{"type": "string"}, {"type": "array", "items": part, "minItems": 1}]}
    message = _object(
        {"role": {"enum": list(ROLES)}, "content": content}, closed=True, required=("role", "content")
    )
    fields = {
        "messages": {"type": "array", "items": message, "minItems": 1},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
    }
    return _asked("messages", fields)


def _duration() -> Json:
    """Above 0 and up to 24 h; a bare number is seconds."""
    number = r"(0\.[0-9]*[1-9]|[1-9][0-9]{0,2}(\.[0-9]{1,3})?)"
    return {
        "type": "string",
        "pattern": rf"^({number}(ms|s|m)?|([1-9]|1[0-9]|2[0-4])h)$",
        "examples": ["30s"],
    }


def _weight() -> Json:
    return {"type": ["number", "null"], "minimum": MIN_WEIGHT, "maximum": MAX_WEIGHT}


def _positive() -> Json:
    return {"type": "number", "exclusiveMinimum": 0}


def _limit(least: int) -> Json:
    return {"type": ["integer", "null"], "minimum": least, "maximum": MAX_COUNT}


def _rates() -> Json:
    each = _limit(1)
    return {"requests_per_minute": each, "tokens_per_minute": each}


def _limits() -> Json:
    return {
        "max_queued": _limit(0),
        "max_queued_tokens": _limit(0),
        "max_in_flight": _limit(1),
        "ttl": {"anyOf": [_positive(), _duration(), {"type": "null"}]},
    }


if __name__ == "__main__":
    json.dump(document(), sys.stdout, indent=1)
    print()
