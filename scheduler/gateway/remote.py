"""A run elsewhere as the ``Feed`` of a dashboard here: what ``driftsched attach URL`` looks at."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp

from scheduler.core.types import Limits
from scheduler.gateway import KEY_VARIABLE
from scheduler.gateway.wire import WireError, notices_from_json, preview_from_json, view_from_json
from scheduler.live.tasks import Tasks
from scheduler.live.view import CommandError, Notice, NotNow, Preview, View

POLL_S = 0.25
RETRY_S = 1.0
TIMEOUT_S = 5.0
_KEPT = 500

_NO_WORD = (aiohttp.ClientError, TimeoutError, CommandError, WireError, KeyError, TypeError)
"""What a server does that is away, refuses, or is of another version."""


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno
        if number is not None and number > 0:
            return os.strerror(number)  # what it says itself begins with the address again
    return str(error) or type(error).__name__  # a TimeoutError says nothing


class AttachError(OSError):
    """There is no run to attach to at this address; says why."""


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # "http://[::1", "http://localhost:99999"
        return False


class RemoteFeed:
    """See ``view.Feed``. ``async with`` connects; a task keeps the latest view until the block ends.

    Verbs are sent in the background: what the server refuses comes back as a notice of kind "error".
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        if not _is_address(url):
            raise AttachError("attach needs an address such as http://127.0.0.1:8000")
        key = "" if key is None else key.strip()
        if not key.isprintable():
            raise AttachError("the operator's key holds characters that no key may have")
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._notices: deque[Notice] = deque(maxlen=_KEPT)
        self._seq = 0  # ours: the server's begins anew when it does
        self._last: Notice | None = None  # as the server numbers it
        self._lost = False
        self._tasks = Tasks()
        self._preview: Preview | None = None
        self._previews = 0  # asked for

    async def __aenter__(self) -> Self:
        """Raises AttachError."""
        self._http = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
        )
        try:
            await self._look()
            self._policies: dict[str, str] = await self._ask("GET", "/control/policies")
            self._scenarios: dict[str, str] = await self._ask("GET", "/control/scenarios")
        except _NO_WORD as error:
            await self._http.close()
            raise AttachError(f"cannot attach to {self._url}: {_why(error)}") from error
        self._tasks.spawn(self._follow())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.stop()
        await self._http.close()

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer. Raises CommandError with the server's words for a refusal."""
        async with self._http.request(method, self._url + path, json=body) as answer:
            try:
                told = await answer.json()
            except ValueError:
                raise CommandError(f"status {answer.status}, and no JSON") from None
            if answer.status != 200:
                error = told.get("error") if isinstance(told, dict) else None
                why = error.get("message") if isinstance(error, dict) else error  # a proxy's may be a string
                said = str(why or f"status {answer.status}")
                if answer.status == 401:
                    said += f"; attach reads the operator's key from {KEY_VARIABLE}"
                raise (NotNow if answer.status == 409 else CommandError)(said)
            return told

    async def _follow(self) -> None:
        """Fetch views, until cancelled; a server that is away is asked again every second."""
        while True:
            try:
                await self._look()
            except _NO_WORD as error:
                if not self._lost:
                    self._lost = True
                    self._note("error", f"no word from {self._url}: {_why(error)}")
                await asyncio.sleep(RETRY_S)
            else:
                if self._lost:
                    self._lost = False
                    self._note("engine", f"{self._url} is back")
                await asyncio.sleep(POLL_S)

    async def _look(self) -> None:
        """Fetch the view and what is new; the last notice comes with it again, unless it is another run's."""
        last = self._last
        told = await self._ask("GET", f"/control/view?after={last.seq - 1 if last else 0}")
        fresh = notices_from_json(told["notices"])
        if last is not None and fresh[:1] != [last]:
            self._last = None
            await self._look()
            return
        self._view = view_from_json(told["view"])
        for notice in fresh[last is not None :]:
            self._last = notice
            self._seq += 1
            self._notices.append(notice._replace(seq=self._seq))

    def _note(self, kind: str, text: str) -> None:
        self._seq += 1
        now_s = self._view.snapshot.now
        self._notices.append(Notice(self._seq, now_s, time.time(), kind, text, False))

    def _send(self, method: str, path: str, **body: Any) -> None:
        async def send() -> None:
            try:
                await self._ask(method, path, body)
            except (aiohttp.ClientError, TimeoutError, CommandError) as error:
                self._note("error", f"refused: {_why(error)}")

        self._tasks.spawn(send())

    # -- Feed ----------------------------------------------------------------------------------------

    def view(self) -> View:
        return replace(self._view, engine_state="unreachable") if self._lost else self._view

    def notices(self, after: int = 0) -> Sequence[Notice]:
        return [notice for notice in self._notices if notice.seq > after]

    def policies(self) -> Mapping[str, str]:
        return self._policies

    def scenarios(self) -> Mapping[str, str]:
        return self._scenarios

    def switch_policy(self, spec: str, by: str = "operator") -> None:
        self._send("POST", "/control/policy", policy=spec, by=by)

    def preview(self, specs: Sequence[str] = ()) -> None:
        self._previews += 1
        self._preview = None
        self._tasks.spawn(self._follow_preview(self._previews, list(specs)))

    async def _follow_preview(self, number: int, specs: list[str]) -> None:
        """Ask, and fetch until it is done or another one was asked for; ask again while it is too early."""
        while number == self._previews:
            try:
                await self._ask("POST", "/control/preview", {"policies": specs})
                while number == self._previews:
                    told = await self._ask("GET", "/control/preview")
                    self._preview = preview_from_json(told["preview"])
                    if self._preview.done:
                        return
                    await asyncio.sleep(POLL_S)
            except NotNow as error:
                self._no_preview(str(error))
                await asyncio.sleep(RETRY_S)
            except _NO_WORD as error:
                self._no_preview(f"no preview: {_why(error)}")
                return

    def _no_preview(self, why: str) -> None:
        snapshot = self._view.snapshot
        self._preview = Preview(snapshot.now, 0.0, snapshot.policy, {}, done=True, error=why)

    def previewed(self) -> Preview | None:
        return self._preview

    def undo_policy(self, by: str = "operator") -> None:
        self._send("POST", "/control/policy/undo", by=by)

    def switch_estimator(self, kind: str, by: str = "operator") -> None:
        self._send("PUT", "/control/estimator", estimator=kind, by=by)

    def inject(self, scenario: str, by: str = "operator") -> None:
        if scenario not in self._scenarios:
            raise CommandError(f"the server has {', '.join(self._scenarios)}; files stay where they are")
        self._send("POST", "/control/scenario", scenario=scenario, by=by)

    def burst(self, tenant: str, rate: float, seconds: float, by: str = "operator") -> None:
        self._send("POST", "/control/burst", tenant=tenant, rate=rate, seconds=seconds, by=by)

    def stop_loads(self, by: str = "operator") -> None:
        self._send("DELETE", "/control/scenario", by=by)

    def pause(self, by: str = "operator") -> None:
        self._send("POST", "/control/pause", by=by)

    def resume(self, by: str = "operator") -> None:
        self._send("POST", "/control/resume", by=by)

    def set_tenant(
        self, name: str, *, weight: float | None = None, limits: Limits | None = None, by: str = "operator"
    ) -> None:
        sent = None if limits is None else asdict(limits)
        if sent is not None:
            sent["ttl"] = sent.pop("ttl_s")
        self._send("PATCH", f"/control/tenants/{quote(name, safe='')}", weight=weight, limits=sent, by=by)
