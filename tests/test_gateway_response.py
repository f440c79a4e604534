"""A whole answer as bytes on the wire: the headers that aiohttp sends, and how the connection goes on."""

from __future__ import annotations

import asyncio
import json

import pytest
from gateway_kit import completion, serving


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """(status line, headers, body)."""
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n").split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    return status, headers, await reader.readexactly(int(headers[b"Content-Length"]))


def post(version: str, *headers: str) -> bytes:
    body = json.dumps(completion())
    lines = (f"POST /v1/completions HTTP/{version}", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*lines, *headers, f"Content-Length: {len(body)}", "", body)).encode()


async def test_answers_on_one_connection_have_the_headers_of_all_others() -> None:
    async with serving() as served, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
        writer.write(post("1.1") + post("1.1"))
        answers = [await answer(reader), await answer(reader)]
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        _, others, _ = await answer(reader)
        for status, headers, body in answers:
            assert status == b"HTTP/1.1 200 OK"
            assert headers.keys() == others.keys()
            assert headers[b"Server"] == others[b"Server"]
            assert headers[b"Content-Type"] == b"application/json"
            assert headers[b"Date"].endswith(b" GMT")
            assert len(headers[b"Date"]) == len(others[b"Date"])
            assert json.loads(body)["object"] == "text_completion"
        writer.close()


@pytest.mark.parametrize(("version", "headers"), [("1.0", ()), ("1.1", ("Connection: close",))])
async def test_a_connection_that_shall_end_ends(version: str, headers: tuple[str, ...]) -> None:
    async with serving() as served, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rpartition(":")[2]))
        writer.write(post(version, *headers))
        status, _, body = await answer(reader)
        assert status == f"HTTP/{version} 200 OK".encode()
        assert json.loads(body)["object"] == "text_completion"
        assert await reader.read() == b""
        writer.close()
