"""What is no request as HTTP has it, and what goes wrong inside: answered in one shape, in words of ours."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_kit import ACME, GLOBEX, OPERATOR, Served, completion, serving, two_keys

BODY = json.dumps(completion()).encode()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving(keys=two_keys()) as served:
        yield served


def post(*headers: str, body: bytes = BODY, length: bool = True) -> bytes:
    head = ["POST /v1/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {ACME}", *headers]
    head.append("Content-Type: application/json")
    if length:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


async def said(served: Served, data: bytes) -> tuple[int, Any]:
    """(status, JSON of its body) of the answer to these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    try:
        writer.write(data)
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"}}")
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


CHUNKED = "Transfer-Encoding: chunked"
NO_REQUESTS = {
    "two framings": post(CHUNKED),
    "two lengths": post("Content-Length: 3"),
    "a length with a sign": post("Content-Length: +5", length=False),
    "an unknown framing": post("Transfer-Encoding: xchunked", length=False),
    "chunked twice": post(CHUNKED, CHUNKED, length=False),
    "a folded header": post("X-A: b\r\n c"),
    "a space before the colon": post("X-A : b"),
    "a bare line feed": post().replace(b"\r\n", b"\n"),
    "10,000 bytes of header": post("X-A: " + "a" * 10_000),
    "200 headers": post(*(f"X-{n}: a" for n in range(200))),
    "two hosts": post("Host: elsewhere"),
    "another method": post().replace(b"POST", b"FOO"),
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "noise": bytes(range(256)),
}


async def test_what_is_no_request(served: Served) -> None:
    for name, data in NO_REQUESTS.items():
        status, told = await said(served, data)
        assert (status, told["error"]["code"]) == (400, "bad_http"), name
        assert ACME not in str(told), "aiohttp's own message quotes the line"
    assert served.run.scheduler.books.counts()["submitted"] == 0


async def test_a_packed_body_is_refused_unread(served: Served) -> None:
    bomb = gzip.compress(b'{"prompt":"' + b"x" * (8 << 20) + b'"}')
    for encoding in ("gzip", "deflate", "br", "zstd", "unheard-of"):
        status, told = await said(served, post(f"Content-Encoding: {encoding}", body=bomb))
        assert (status, "Content-Encoding" in told["error"]["message"]) == (415, True), encoding


async def test_a_tenant_sends_only_so_much_at_a_time(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    coming = served.gateway.completions.bodies.coming
    large = json.dumps(completion(prompt="x" * 200_000)).encode()
    monkeypatch.setattr("scheduler.gateway.bodies.MAX_COMING_BYTES", len(large) + 10)
    first = post(body=large)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(first[:-1])
    async with asyncio.timeout(20):
        while not coming["acme"]:  # noqa: ASYNC110 (nothing rings for a test)
            await asyncio.sleep(0.005)
        for another, status in (
            (first[:-1], 429),
            (post()[:-1], 429),
            (post(CHUNKED, body=b"1\r\n{", length=False), 429),
            (first.replace(ACME.encode(), GLOBEX.encode()), 200),
            (post(), 200),  # it comes with its headers
        ):
            assert (await said(served, another))[0] == status
        writer.write(first[-1:])
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
    writer.close()
    assert not any(coming.values())


async def test_a_chunked_body_is_one_and_a_broken_one_is_400(served: Served) -> None:
    for size, status in ((b"%x", 200), (b"zz%x", 400)):
        data = size % len(BODY) + b"\r\n" + BODY + b"\r\n0\r\n\r\n"
        assert (await said(served, post(CHUNKED, body=data, length=False)))[0] == status


async def test_an_expectation_that_is_not_known(served: Served) -> None:
    assert (await said(served, post("Expect: wonders")))[0] == 417


async def test_an_endless_answer_has_no_head(served: Served) -> None:
    sent = {"Authorization": f"Bearer {OPERATOR}"}
    async with asyncio.timeout(20), served.http.head(f"{served.url}/control/events", headers=sent) as answer:
        assert answer.status == 405


async def test_an_idle_connection_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a request's head included."""
    monkeypatch.setattr("scheduler.gateway.connection.IDLE_S", 0.01)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(post()[:40])
    async with asyncio.timeout(20):
        assert await reader.read() == b""
    writer.close()


async def test_an_error_of_ours_is_500_in_words_of_ours(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for error in (RuntimeError("a secret prompt"), TimeoutError("a secret prompt")):

        def broken(*args: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(served.run.session, "submit", broken)
        status, told = await said(served, post())
        assert (status, told["error"]["code"]) == (500, "internal_error")
        assert "secret" not in str(told)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert "RuntimeError in test_gateway_connection.py:" in caplog.text
    assert "TimeoutError" in caplog.text
    assert "secret" not in caplog.text
