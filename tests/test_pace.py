"""Requests and tokens per minute: what a minute holds, how it fills again, and when to come back."""

from __future__ import annotations

import pytest
from gateway_kit import completion, serving

from scheduler.core.pace import Bucket, Pace
from scheduler.core.types import Limits
from scheduler.load.schema import TenantSection


def test_a_minutes_worth_at_once_and_then_at_its_rate() -> None:
    pace, limits = Pace(), Limits(requests_per_minute=6)
    assert [pace.admit(limits, 1, 0.0) for _ in range(7)] == [""] * 6 + ["tenant_requests_per_minute"]
    assert pace.retry_after_s == pytest.approx(10.0)
    assert pace.admit(limits, 1, 9.9)
    assert not pace.admit(limits, 1, 10.0)
    assert pace.admit(limits, 1, 10.0)
    assert [pace.admit(limits, 1, 1000.0) for _ in range(7)].count("") == 6, "it holds no more than a minute"


def test_a_refusal_takes_nothing() -> None:
    pace, limits = Pace(), Limits(requests_per_minute=10, tokens_per_minute=100)
    assert not pace.admit(limits, 60, 0.0)
    for _ in range(20):
        assert pace.admit(limits, 60, 0.0) == "tenant_tokens_per_minute"
    assert pace.retry_after_s == pytest.approx(12.0)
    assert [pace.admit(limits, 4, 0.0) for _ in range(10)].count("") == 9


def test_more_than_a_minutes_worth_waits_for_a_full_bucket_and_is_paid_off() -> None:
    bucket = Bucket()
    assert bucket.wait_s(100, 250, 0.0) == 0
    bucket.level -= 250
    assert bucket.wait_s(100, 250, 0.0) == pytest.approx(150.0)
    assert bucket.wait_s(100, 250, 150.0) == 0


async def test_over_http() -> None:
    tenants = [TenantSection(name="default", requests_per_minute=2)]
    async with serving(tenants=tenants, speed=1.0) as served:
        for _ in range(2):
            assert (await served.post("/v1/completions", completion(max_tokens=1)))[0] == 200
        status, body, headers = await served.post("/v1/completions", completion())
        assert (status, body["error"]["code"]) == (429, "tenant_requests_per_minute")
        assert 20 <= int(headers["Retry-After"]) <= 30
        books = served.run.scheduler.books.tenants.values()
        assert sum(b.submitted for b in books) == sum(sum(b.ended.values()) for b in books) == 3
