"""The control API, and ``attach``: the same verbs and the same view over the wire."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from math import inf, isnan, nan
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from fake_feed import FakeFeed
from gateway_kit import ACME, OPERATOR, Served, bearer, completion, serving, two_keys
from waiting import until

from driftui.app import DriftApp
from scheduler.core.types import Limits
from scheduler.engines.engine import EngineLost
from scheduler.gateway.control import Control
from scheduler.gateway.remote import AttachError, RemoteFeed
from scheduler.gateway.wire import WireError, notices_from_json, to_json, view_from_json
from scheduler.live.view import CommandError


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(keys=two_keys(), speed=20.0) as served:
        yield served


async def ask(served: Served, method: str, path: str, body: object = None, key: str = OPERATOR) -> int:
    async with served.http.request(method, served.url + path, json=body, headers=bearer(key)) as answer:
        await answer.json()
        return answer.status


def test_a_view_survives_the_wire() -> None:
    view = FakeFeed().view()
    sent = json.loads(json.dumps(to_json(view), allow_nan=False))
    assert repr(view_from_json(sent)) == repr(view)


def test_what_is_no_view_is_refused() -> None:
    no_views: list[Any] = [None, [], {}, {"snapshot": 5}]
    for data in no_views:
        with pytest.raises(WireError):
            view_from_json(data)
    with pytest.raises(WireError):
        notices_from_json([{"seq": "x"}])


def test_nan_and_infinity_are_text_on_the_wire() -> None:
    sent = to_json(replace(FakeFeed().view(), speed=inf, loop_lag_p99_ms=nan))
    assert (sent["speed"], sent["loop_lag_p99_ms"]) == ("inf", "nan")
    assert isnan(view_from_json(sent).loop_lag_p99_ms)


async def test_every_address_wants_the_operator(served: Served) -> None:
    routes = Control(served.run, two_keys(), served.gateway.completions, served.gateway.feed).routes()
    assert len(routes) > 10
    for route in routes:
        path = route.path.replace("{name}", "acme")
        assert await ask(served, route.method, path, {}, ACME) == 403, path
        assert await ask(served, route.method, path, {}, "wrong") == 401, path


async def test_policy_and_who_asked_for_it(served: Served) -> None:
    assert await ask(served, "POST", "/control/policy", {"policy": "sjf", "by": "alice"}) == 200
    await until(lambda: served.run.scheduler.policy.name == "sjf")
    assert served.run.session.switches[-1]["by"] == "alice"
    assert await ask(served, "POST", "/control/policy/undo", {}) == 200
    await until(lambda: served.run.scheduler.policy.name == "fifo")
    assert await ask(served, "POST", "/control/policy/undo", {}) == 409
    assert await ask(served, "POST", "/control/policy", {"policy": "nonsense"}) == 400
    assert await ask(served, "POST", "/control/policy", {"policy": "sjf", "by": "\x1b[2J"}) == 400
    assert await ask(served, "POST", "/control/policy", {"polcy": "sjf"}) == 400


async def test_the_estimator_and_what_waits_is_estimated_anew(served: Served) -> None:
    scheduler = served.run.scheduler
    assert await ask(served, "POST", "/control/pause", {}) == 200
    waiting = asyncio.create_task(served.post("/v1/completions", completion(), ACME))
    await until(lambda: scheduler.books.totals.queued == 1)
    (request,) = scheduler.active()
    before = request.estimate
    assert await ask(served, "PUT", "/control/estimator", {"estimator": "learned", "by": "erin"}) == 200
    await until(lambda: scheduler.estimator.name == "learned" and request.estimate is not before)
    assert any("estimator learned by erin" in notice.text for notice in served.run.notices.after(0))
    for wrong in ("oracle", "nonsense", 5):
        assert await ask(served, "PUT", "/control/estimator", {"estimator": wrong}) == 400
    assert await ask(served, "POST", "/control/resume", {}) == 200
    assert (await waiting)[0] == 200


async def test_pause_resume_limits_tenants_drain(served: Served) -> None:
    scheduler = served.run.scheduler
    assert await ask(served, "POST", "/control/pause", {}) == 200
    assert scheduler.paused
    assert await ask(served, "POST", "/control/resume", {}) == 200
    assert not scheduler.paused
    assert await ask(served, "PUT", "/control/limits", {"max_queued": 7, "ttl": "5s"}) == 200
    assert scheduler.limits == Limits(max_queued=7, ttl_s=5.0)
    change = {"weight": 3, "limits": {"max_in_flight": 2}}
    assert await ask(served, "PATCH", "/control/tenants/acme", change) == 200
    config = scheduler.books.tenant("acme").config
    assert (config.weight, config.limits) == (3.0, Limits(max_in_flight=2))
    change = {"limits": {"ttl": "9s", "tokens_per_minute": 500}}
    assert await ask(served, "PATCH", "/control/tenants/acme", change) == 200
    change = {"limits": {"max_in_flight": None}}
    assert await ask(served, "PATCH", "/control/tenants/acme", change) == 200
    config = scheduler.books.tenant("acme").config
    assert (config.weight, config.limits) == (3.0, Limits(ttl_s=9.0, tokens_per_minute=500)), "named alone"
    assert await ask(served, "PATCH", "/control/tenants/nobody", {}) == 404
    for senseless in ({"weight": -1}, {"weight": 1e-9}, {"weight": 1e9}, {"limits": {"ttl": 10**400}}):
        assert await ask(served, "PATCH", "/control/tenants/acme", senseless) == 400
    assert await ask(served, "POST", "/control/drain", {}) == 200
    assert (await served.post("/v1/completions", completion(), ACME))[0] == 503
    assert await ask(served, "POST", "/control/drain", {"draining": False}) == 200
    assert (await served.post("/v1/completions", completion(), ACME))[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (
            "/control/tenants/acme",
            {"wight": 2},
            "wight: unknown key; allowed: by, weight, limits; did you mean",
        ),
        ("/control/tenants/acme", {"limits": {"ttl": 1e300}}, "limits.ttl: too long a time"),
        ("/control/tenants/acme", {"\x1b[2J": 2}, "'\\x1b[2J': unknown key"),
        (
            "/control/tenants/acme",
            {"limits": {"tokens_per_minute": 10**400}},
            "limits.tokens_per_minute: must be at most 1e+18",
        ),
        ("/control/limits", {"max_queued": 10**18}, "max_queued: must be at most 1e+18, got 1000"),
        ("/control/limits", {"max_queued": -1}, "max_queued: must be at least 0, got -1"),
        ("/control/estimator", {}, "estimator: is required"),
    ],
)
async def test_a_refusal_says_what_is_allowed(
    served: Served, path: str, body: dict[str, object], told: str
) -> None:
    method = "PATCH" if "tenants" in path else "PUT"
    async with served.http.request(method, served.url + path, json=body, headers=bearer(OPERATOR)) as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["param"]) == (400, told.split(": ")[0])
    assert error["message"].startswith(told)


async def test_a_scenario_is_started_and_stopped(served: Served) -> None:
    assert await ask(served, "POST", "/control/scenario", {"scenario": "demo", "by": "bob"}) == 200
    assert served.run.session.loads
    assert any("injected by bob" in notice.text for notice in served.run.notices.after(0))
    assert await ask(served, "DELETE", "/control/scenario", {}) == 200
    assert not served.run.session.loads
    for elsewhere in ("/etc/hostname", "../demo", "nonsense"):
        assert await ask(served, "POST", "/control/scenario", {"scenario": elsewhere}) == 400


BURST = {"tenant": "acme", "rate": 5, "seconds": 5}


async def refusal(served: Served, path: str, body: object) -> tuple[int, str, bool]:
    """(status, code, whether it says when to come back)."""
    status, told, headers = await served.post(path, body, OPERATOR)
    return status, told["error"]["code"], "Retry-After" in headers


async def test_what_is_right_but_not_now_is_no_bad_request() -> None:
    async with serving(keys=two_keys(), start=False) as served:
        for path, body in (("/control/scenario", {"scenario": "demo"}), ("/control/burst", BURST)):
            assert await refusal(served, path, body) == (503, "engine_starting", True)
        assert await refusal(served, "/control/policy/undo", {}) == (409, "nothing_to_undo", False)


async def test_no_load_is_started_on_a_server_that_drains(served: Served) -> None:
    assert await ask(served, "POST", "/control/drain", {}) == 200
    assert await refusal(served, "/control/burst", BURST) == (503, "draining", True)
    assert await ask(served, "POST", "/control/drain", {"draining": False}) == 200
    assert await ask(served, "POST", "/control/burst", BURST) == 200


async def test_no_preview_before_the_engines_pace_is_known(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.run.previewer, "_profile", lambda: None)
    assert await refusal(served, "/control/preview", {}) == (409, "no_preview_yet", False)


async def test_events_stream(served: Served) -> None:
    url = f"{served.url}/control/events?after=0"
    async with asyncio.timeout(10), served.http.get(url, headers=bearer(OPERATOR)) as answer:
        await ask(served, "POST", "/control/pause", {"by": "carol"})
        while True:
            line = await answer.content.readline()
            if b"paused by carol" in line:
                assert json.loads(line.removeprefix(b"data: "))["kind"] == "pause"
                break
    await until(lambda: not served.gateway.control._bells)


async def test_events_go_on_to_the_last_even_where_the_engine_dies_while_it_stops(served: Served) -> None:
    url = f"{served.url}/control/events"
    async with asyncio.timeout(4), served.http.get(url, headers=bearer(OPERATOR)) as answer:
        await answer.content.readuntil(b"\n\n")
        stop = served.run.engine.stop

        async def dies() -> None:
            served.run.session.fail(EngineLost("gone"))
            await stop()

        served.run.engine.stop = dies  # type: ignore[method-assign]
        await served.run.stop()
        await served.gateway.close()
        told = (await answer.read()).decode().rstrip().splitlines()
        assert "engine stopped for good: gone" in told[-4]
        assert json.loads(told[-1].removeprefix("data: "))["text"] == "engine stopped"


async def test_who_does_not_read_events_is_dropped(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.gateway.response.STALL_S", 0.05)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # else the system itself takes megabytes
    client.connect(("127.0.0.1", served.port))
    _, writer = await asyncio.open_connection(sock=client, limit=1)
    head = f"GET /control/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OPERATOR}\r\n\r\n"
    writer.write(head.encode())
    await until(lambda: served.gateway.control._bells)
    for _ in range(100):
        served.run.notices.add(0.0, "scenario", "x" * 100_000)
    await until(lambda: not served.gateway.control._bells)
    writer.close()


async def test_a_server_that_stops_does_not_change_its_mind(served: Served) -> None:
    served.gateway.drain()
    for path, body in (
        ("/control/drain", {"draining": False}),
        ("/control/pause", {}),
        ("/control/scenario", {"scenario": "demo"}),
        ("/control/burst", BURST),
    ):
        assert await refusal(served, path, body) == (503, "shutting_down", True), path
    status, told, headers = await served.post("/v1/completions", completion(), ACME)
    assert (status, told["error"]["code"]) == (503, "shutting_down")
    assert headers["Connection"] == "close", "its next connection may find another server"
    assert await ask(served, "POST", "/control/policy", {"policy": "sjf"}) == 200


async def test_attached_a_run_looks_and_is_steered_as_at_home(served: Served) -> None:
    async with RemoteFeed(served.url, OPERATOR) as feed:
        assert feed.view().engine_detail == served.run.engine.detail
        assert "demo" in feed.scenarios()
        assert "sjf" in feed.policies()
        feed.switch_policy("sjf", by="dana")
        await until(lambda: feed.view().snapshot.policy == "sjf")
        assert any("dana" in notice.text for notice in feed.notices())
        feed.switch_estimator("learned")
        await until(lambda: feed.view().estimator == "learned")
        feed.undo_policy()
        feed.pause()
        await until(lambda: feed.view().snapshot.paused and feed.view().snapshot.policy == "fifo")
        feed.resume()
        feed.set_tenant("acme", weight=5.0, limits=Limits(max_queued=3, ttl_s=2.0))
        await until(lambda: served.run.scheduler.books.tenant("acme").config.limits == Limits(3, ttl_s=2.0))
        feed.inject("demo")
        await until(lambda: feed.view().scenario == "demo")
        feed.stop_loads(by="dana")
        await until(lambda: any("loads stopped by dana" in notice.text for notice in feed.notices()))
        assert not served.run.session.loads
        feed.burst("nobody", 1.0, 1.0)
        await until(lambda: any(n.kind == "error" and "unknown tenant" in n.text for n in feed.notices()))
        feed.switch_policy("nonsense")
        await until(lambda: any(n.kind == "error" and "unknown policy" in n.text for n in feed.notices()))
        with pytest.raises(CommandError):
            feed.inject("/etc/hostname")
        numbers = [notice.seq for notice in feed.notices()]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_attached_one_sees_that_the_server_stops(served: Served) -> None:
    async with RemoteFeed(served.url, OPERATOR) as feed:
        assert feed.view().engine_state == "ready"
        served.gateway.drain()
        await until(lambda: feed.view().engine_state == "stopping")


async def test_attached_one_sees_who_else_may_switch_the_policy() -> None:
    rules: dict[str, Any] = {"guard": {"worse_than_predicted": 0.25}, "policy": {"auto": {}}}
    for config, armed in (({}, False), (rules, True)):
        async with serving(keys=two_keys(), **config) as served, RemoteFeed(served.url, OPERATOR) as feed:
            assert (feed.view().guarded, feed.view().autopilot) == (armed, armed)


async def test_attached_a_preview_that_came_too_early_is_asked_for_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.gateway.remote.RETRY_S", 0.01)

    def error() -> str:
        preview = feed.previewed()
        return "" if preview is None else preview.error

    async with RemoteFeed(served.url, OPERATOR) as feed:
        monkeypatch.setattr(served.run.previewer, "_profile", lambda: None)
        feed.preview(["sjf"])
        await until(lambda: "nothing is known of the engine's pace" in error())
        monkeypatch.undo()
        await until(lambda: (preview := feed.previewed()) is not None and "sjf" in preview.policies)
        assert error() == ""


async def test_attach_says_why_not(served: Served) -> None:
    for url, key, what in (
        (served.url, ACME, "operator"),
        (served.url, None, "operator's key from DRIFTSCHED_OPERATOR_KEY"),
        ("http://127.0.0.1:1", OPERATOR, r"^cannot attach to http://127.0.0.1:1: Connection refused$"),
        ("nonsense", None, "such as http"),
        ("http://[::1", None, "such as http"),
        ("http://127.0.0.1:99999", None, "such as http"),
        (served.url, OPERATOR + "\nx", "no key may have"),
    ):
        with pytest.raises(AttachError, match=what):
            async with RemoteFeed(url, key):
                pass


async def test_attach_quotes_whatever_stands_before_the_server() -> None:
    for told, what in (
        ({"error": "bad gateway"}, "bad gateway"),
        ({"error": {"message": None}}, "status 502"),
        (["error"], "status 502"),
    ):
        app = web.Application()

        async def refuse(http: web.Request, told: object = told) -> web.Response:
            return web.json_response(told, status=502)

        app.router.add_get("/control/view", refuse)
        async with TestServer(app) as proxy:
            with pytest.raises(AttachError, match=what):
                async with RemoteFeed(str(proxy.make_url(""))):
                    pass


async def test_a_server_that_goes_away_is_shown(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler.gateway.remote.RETRY_S", 0.01)
    async with RemoteFeed(served.url, OPERATOR) as feed:
        monkeypatch.setattr(feed, "_url", "http://127.0.0.1:1")
        await until(lambda: feed.view().engine_state == "unreachable")
        monkeypatch.setattr(feed, "_url", served.url)
        await until(lambda: feed.view().engine_state == "ready")
        assert [notice.kind for notice in feed.notices()][-2:] == ["error", "engine"]


async def test_all_notices_of_a_server_that_began_anew_are_told(served: Served) -> None:
    async with serving(speed=400.0) as other, RemoteFeed(served.url, OPERATOR + "\n") as feed:
        feed.pause(by="dana")
        await until(lambda: any("dana" in notice.text for notice in feed.notices()))
        names = ["one", "two", "three", "four", "five"]
        for name in names:
            other.gateway.feed.set_tenant("acme", weight=2.0, by=name)
        feed._url = other.url
        await until(lambda: any("five" in notice.text for notice in feed.notices()))
        told = [notice.text.split()[-1] for notice in feed.notices()]
        assert [name for name in told if name in ("dana", *names)] == ["dana", *names]


async def test_the_dashboard_opens_on_it(served: Served) -> None:
    async with RemoteFeed(served.url, OPERATOR) as feed:
        app = DriftApp(feed, auto_refresh=False)
        async with app.run_test(size=(120, 40)) as pilot:
            app.tick()
            await pilot.pause()
            await pilot.press("P")
            await until(lambda: served.run.scheduler.paused)
