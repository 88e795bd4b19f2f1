"""Fetching from Storage over a real socket: what is sent, where it ends, and what each failure becomes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from worker.errors import Misconfigured, Rejected, Unavailable
from worker.pipeline import fetch
from worker.pipeline.fetch import NotFound, ObjectStore

KEY = "sb_secret_hush"


class Server:
    """Gives the next answer to each request, and keeps what was asked; None is silence."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.port = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            answer = self.answers.pop(0)
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def storage(*answers: bytes | None) -> AsyncIterator[tuple[Server, ObjectStore]]:
    made = Server(*answers)
    server = await asyncio.start_server(made, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    store = ObjectStore(f"http://127.0.0.1:{made.port}/", KEY)
    try:
        yield made, store
    finally:
        await store.close()
        server.close()
        await server.wait_closed()


def answer(status: int, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


async def test_the_bytes_arrive_with_their_size_and_hash_and_the_name_is_sent_as_it_is(tmp_path: Path) -> None:
    body = b"harbour" * 50_000
    async with storage(answer(200, body)) as (server, store):
        got = await store.download("documents", "a/100%25 b?#.md", tmp_path / "x", max_bytes=len(body))

    assert got == (len(body), hashlib.sha256(body).digest())
    assert (tmp_path / "x").read_bytes() == body
    head = server.asked[0].lower()
    assert head.startswith("get /storage/v1/object/authenticated/documents/a/100%2525%20b%3f%23.md http/1.1\r\n")
    assert f"\r\napikey: {KEY}\r\n" in head
    assert f"\r\nauthorization: bearer {KEY}\r\n" in head


async def test_a_redirect_is_not_followed_so_that_nobody_else_is_given_the_key(tmp_path: Path) -> None:
    async with storage(answer(200, b"stolen")) as (thief, _):
        async with storage(answer(302, b"", f"location: http://127.0.0.1:{thief.port}/")) as (_, store):
            with pytest.raises(Unavailable, match="storage_unreachable"):
                await store.download("documents", "a", tmp_path / "x", max_bytes=100)
        assert thief.asked == []


@pytest.mark.parametrize("declared", [True, False])
async def test_what_is_larger_than_allowed_ends_there_whatever_was_declared(tmp_path: Path, declared: bool) -> None:
    body = b"x" * 3_000_000
    said = answer(200, body) if declared else b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n" + body
    async with storage(said) as (_, store):
        with pytest.raises(Rejected, match="file_too_large"):
            await store.download("documents", "a", tmp_path / "x", max_bytes=1_000_000)
    assert (tmp_path / "x").stat().st_size <= 1_000_000


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (answer(200, b"half", length=8), Unavailable, "storage_unreachable"),
        (b"", Unavailable, "storage_unreachable"),
        (b"no HTTP\r\n\r\n", Unavailable, "storage_unreachable"),
        (answer(200, b"no gzip", "content-encoding: gzip"), Unavailable, "storage_unreachable"),
        (answer(503, b"busy"), Unavailable, "storage_unreachable"),
        (answer(400, b'{"statusCode": "404", "error": "not_found"}'), NotFound, "not_found"),
        (answer(400, b'{"statusCode": "403", "error": "Unauthorized"}'), Misconfigured, "storage_refused"),
    ],
)
async def test_every_failure_has_its_class(tmp_path: Path, said: bytes, error: type[Exception], words: str) -> None:
    # Twice: a request over a line that was cut may be sent again.
    async with storage(said, said) as (_, store):
        with pytest.raises(error, match=words):
            await store.download("documents", "a", tmp_path / "x", max_bytes=100)


@pytest.mark.parametrize("said", [None, b"HTTP/1.1 200 X\r\ncontent-length: 9\r\n\r\nhalf"])
async def test_a_silence_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: bytes | None) -> None:
    monkeypatch.setattr(fetch, "_SECONDS", 0.2)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said or b"")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    store = ObjectStore(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY)
    with pytest.raises(Unavailable, match="storage_unreachable"):
        await store.download("documents", "a", tmp_path / "x", max_bytes=100)
    await store.close()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(("bypass", "through"), [("", True), ("127.0.0.1", False)])
async def test_the_environments_proxy_is_used_unless_it_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bypass: str, through: bool
) -> None:
    async with storage(answer(200, b"text")) as (proxy, _):
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", bypass)
        store = ObjectStore("http://127.0.0.1:1", KEY)
        if through:
            await store.download("documents", "a", tmp_path / "x", max_bytes=100)
            assert proxy.asked[0].startswith("GET http://127.0.0.1:1/storage/v1/object/authenticated/documents/a ")
        else:
            with pytest.raises(Unavailable, match="storage_unreachable"):
                await store.download("documents", "a", tmp_path / "x", max_bytes=100)
            assert proxy.asked == []
        await store.close()
