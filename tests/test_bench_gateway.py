"""bench gateway: small, so what it says is checked, not how fast anything is."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from scheduler.bench.gateway import beside_echo
from scheduler.bench.gateway_load import closed_loop
from scheduler.bench.result import BenchError


@pytest.mark.slow
def test_rounds_of_both_sides_and_what_is_claimed() -> None:
    told: list[str] = []
    result = beside_echo(told.append, rounds=2, seconds=0.2)
    assert [row["first"] for row in result.rows] == ["echo", "gateway"]
    for row in result.rows:
        assert row["share"] == row["gateway_per_s"] / row["echo_per_s"]
        assert row["echo_cpu_us"] > 0
    # Not in each round: while the machine stands still, one may seem to work.
    assert min(row["echo_cpu_us"] for row in result.rows) < max(row["gateway_cpu_us"] for row in result.rows)
    claims = {claim.id: claim for claim in result.claims}
    assert claims.keys() == {"requests_per_s", "share_of_echo", "p99_ms"}
    assert claims["requests_per_s"].ours > 0
    assert claims["p99_ms"].ok == (claims["p99_ms"].ours <= 80)
    assert "round 2 of 2" in told[-1]


async def test_an_answer_that_is_no_200_ends_the_load() -> None:
    statuses = iter([200, 500])

    async def answer(http: web.Request) -> web.Response:
        await http.read()
        return web.Response(status=next(statuses), body=b"x")

    app = web.Application()
    app.add_routes([web.post("/", answer)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(BenchError, match="another answer"):
            async with asyncio.timeout(30):
                await closed_loop(runner.addresses[0][1], "/", b"{}", connections=1, seconds=5.0)
    finally:
        await runner.cleanup()
