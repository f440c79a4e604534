"""Expectations: how they are read, and how they hold."""

from __future__ import annotations

import re

import pytest

from scheduler.core.types import TIERS
from scheduler.record.expect import evaluate, parse_expect
from scheduler.record.paths import valid_paths

RUN = {
    "policy": "sjf",
    "paper": False,
    "dispatch": "microbatch 32/10ms",
    "requests": {"failed": 0, "finished": 60},
    "latency_s": {"all": {"e2e": {"p99": 11.5}}, "tenants": {"a.b": {"e2e": {"p99": 2.0}}, "a": {"x": 1}}},
    "estimate": {"spearman": None},
    "rejections": {"queue_full": 3},
    "switches": [{"queued": 12, "to": "sjf"}],
}


@pytest.mark.parametrize(
    ("text", "ok", "value"),
    [
        ("requests.failed == 0", True, 0),
        ("requests.failed != 0", False, 0),
        ("requests.finished >= 60", True, 60),
        ("requests.finished > 60", False, 60),
        ("requests.finished <= 59", False, 60),
        ("latency_s.all.e2e.p99 < 12s", True, 11.5),
        ("latency_s.all.e2e.p99 < 11000ms", False, 11.5),
        ("latency_s.all.e2e.p99<1m", True, 11.5),
        ("latency_s.tenants.a.b.e2e.p99 == 2", True, 2.0),
        ("policy == sjf", True, "sjf"),
        ("policy != fifo", True, "sjf"),
        ("paper == false", True, False),
        ("paper == 0", False, False),
        ("dispatch == microbatch 32/10ms", True, "microbatch 32/10ms"),
        ("switches.0.queued > 0", True, 12),
        ("switches.1.queued > 0", False, None),
        ("estimate.spearman > -1", False, None),
        ("estimate.spearman != 5", False, None),
        ("requests.expired == 0", False, None),
        ("estimate.spearman == null", True, None),
        ("requests.failed == null", False, 0),
        ("requests.failed != null", True, 0),
        ("rejections.too_long == 0", True, 0),
        ("rejections.queue_full >= 3", True, 3),
    ],
)
def test_against_a_run(text: str, ok: bool, value: object) -> None:
    assert evaluate([text], RUN) == [{"text": text, "ok": ok, "value": value}]


PATHS = valid_paths(["acme", "a.b"], TIERS)


@pytest.mark.parametrize(
    "text",
    [
        "latency_s.tiers.premium.e2e.p99 < 12s",
        "latency_s.tenants.a.b.requests.rejected == 0",
        "estimate.class_confusion.short.long < 5",
        "estimate.bias.short_qa > 1.1",
        "switches.17.took_ms < 20",
        "telemetry.gpu.power_w.max < 72",
        "loop_lag_ms.p99 < 20",
        "clock == virtual",
        "rejections.too_long == 0",
        "limits.max_queued == 500",
        "tenants.a.b.weight == 2",
        "tenants.acme.slo.ttft_s <= 2s",
        "tenants.acme.limits.requests_per_minute == 30",
        "max_model_len == 2048",
        "counter == tokenizer",
        "calibrated == true",
        "guarded == false",
        "failure == null",
    ],
)
def test_paths_that_a_run_has(text: str) -> None:
    assert parse_expect(text, PATHS).text == text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("requests.failed", "is not `PATH OP VALUE`"),
        ("requests.failed = 0", "OP is one of"),
        ("requests.failed =< 0", "OP is one of != < <= == > >="),
        ("requests.failed => 0", "OP is one of"),
        ("requests.failed != nan", "it cannot be compared with 'nan'"),
        ("requests.failed < inf", "< needs a number or a duration, got 'inf'"),
        ("requests.failed < 1_000", "< needs a number or a duration, got '1_000'"),
        ("requests.failed < 1e999", "< needs a number or a duration"),
        ("rejections.to_long == 0", "did you mean 'rejections.too_long'"),
        ("requests.faild == 0", "did you mean 'requests.failed'"),
        ("requests == 0", "no run has the path"),
        ("latency_s.tenants.nobody.e2e.p99 < 1", "no run has the path"),
        ("switches.x.queued > 0", "no run has the path"),
        ("requests.failed < null", "< needs a number or a duration, got 'null'"),
        ("requests.failed < few", "< needs a number or a duration, got 'few'"),
        ("requests.failed == few", "requests.failed is a number, it cannot be compared with 'few'"),
        ("policy == 5", "policy is text"),
        ("policy < 5", "policy is text"),
        ("paper == yes", "paper is true or false"),
    ],
)
def test_what_cannot_be_meant(text: str, what: str) -> None:
    with pytest.raises(ValueError, match=re.escape(what)):
        parse_expect(text, PATHS)
