"""Uploads that race, break off, arrive in pieces or are large, and what a crash left behind."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import uuid4

import psutil  # type: ignore[import-untyped]
import pytest

from local import deno
from local.stack import Stack
from tests.integration.storage_world import BUCKET, A, World, request, storage_world
from tests.integration.supabase_js import blob

MIB = 2**20


@pytest.fixture(scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    """Buckets and callers of this module."""
    async with storage_world(stack) as made:
        yield made


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def test_two_writers_of_one_name_leave_one_file(world: World) -> None:
    before = world.files()
    async with world.http(world.alice) as client:
        path = f"/object/{BUCKET}/{A}/race.txt"
        answers = await asyncio.gather(
            *(client.post(path, content=b"x" * i, headers={"x-upsert": "true"}) for i in range(20))
        )
    assert {answer.status_code for answer in answers} == {200}

    row = await world.row(f"{A}/race.txt")
    assert row is not None
    assert world.files() - before == {row["version"]}


async def test_two_first_writers_of_one_name_wait_for_each_other(world: World) -> None:
    before = world.files()
    name = f"{A}/first.txt"
    waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    async with world.http(world.alice) as client:
        # Both have passed the probe, and neither has a row to lock yet: the name itself is what they queue for.
        async with world.admin.transaction():
            await world.admin.execute("select pg_advisory_xact_lock(hashtextextended($1, 5077))", f"{BUCKET}/{name}")
            writers = [
                asyncio.create_task(client.post(f"/object/{BUCKET}/{name}", content=text)) for text in (b"one", b"two")
            ]
            deadline = time.monotonic() + 10
            while await world.admin.fetchval(waiting) < 2:
                assert time.monotonic() < deadline
        answers = await asyncio.gather(*writers)

    assert [answer.status_code for answer in answers] == [200, 200]
    row = await world.row(name)
    assert row is not None
    assert world.files() - before == {row["version"]}


async def test_a_form_arrives_whole_however_its_bytes_are_cut(world: World) -> None:
    content = b"\r\n--cut\r\n--cu\r\n-\r\r\n--cutt--\r\n"
    field = b'content-disposition: form-data; name="metadata"\r\n\r\n{"k": 1}'
    head = b'content-disposition: form-data; name=""; filename="a"\r\ncontent-type: text/csv; charset=x\r\n\r\n'
    body = b"\r\n--cutter\r\n".join([b"", field, head + content])[2:] + b"\r\n--cutter--\r\n"
    for size in (1, 2, 3, 7, 64):
        pieces = [body[i : i + size] for i in range(0, len(body), size)]
        chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        status, answer = await request(
            world, "PUT", f"/object/{BUCKET}/cut.csv", chunked, f"apikey: {world.stack.secret_key}",
            "content-type: multipart/form-data; boundary=cutter", "transfer-encoding: chunked",
        )  # fmt: skip
        assert status == 200, answer
        assert await world.service.bytes_of(BUCKET, "cut.csv") == content
    info = await world.service.storage(BUCKET, "info", "cut.csv")
    assert (info["contentType"], info["metadata"]) == ("text/csv", {"k": 1})


@pytest.mark.parametrize("body", [b"", b"--b\r\n", b"--b--", b"nonsense", b'--b\r\nx: y\r\n\r\nno file\r\n--b--\r\n',
                                  b'--b\r\ncontent-disposition: form-data; filename="a"\r\n\r\ncut o'])  # fmt: skip
async def test_a_malformed_form_stores_nothing(world: World, body: bytes) -> None:
    before = world.files()
    headers = ("content-type: multipart/form-data; boundary=b", f"apikey: {world.stack.secret_key}")
    status, answer = await request(world, "POST", f"/object/{BUCKET}/bad.txt", body, *headers)

    assert (status, json.loads(answer)["code"]) == (400, "InvalidRequest")
    assert world.files() == before
    assert await world.row("bad.txt") is None


async def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    before = world.files()
    _, writer = await asyncio.open_connection("127.0.0.1", world.stack.server.port)
    head = f"POST /storage/v1/object/{BUCKET}/half.txt HTTP/1.1\r\nhost: x\r\napikey: {world.stack.secret_key}\r\n"
    writer.write(head.encode() + b"content-length: 1000000\r\n\r\n" + b"x" * 1000)
    await writer.drain()
    await until(lambda: world.files() != before)

    writer.transport.abort()

    await until(lambda: world.files() == before)
    assert await world.row("half.txt") is None


async def test_a_large_upload_does_not_fill_the_memory(world: World) -> None:
    process = psutil.Process(world.stack.server.pid)
    content = os.urandom(50 * MIB)
    peak = 0

    async def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            await asyncio.sleep(0.005)

    async with world.http(world.service) as client:
        await client.post(f"/object/{BUCKET}/warm", files={"file": ("a", content[:MIB])})
        before = process.memory_info().rss
        watching = asyncio.create_task(watch())
        answer = await client.post(f"/object/{BUCKET}/large", files={"file": ("a", content)})
        downloaded = await client.get(f"/object/{BUCKET}/large")
        watching.cancel()

    assert answer.status_code == 200
    assert downloaded.content == content
    # 5 to 27 MB were measured for one direction, 56 in all on a busy machine; holding the file both ways would be 100.
    assert peak - before < 80 * MIB


async def test_a_start_removes_old_files_without_a_row_and_no_others(world: World, tmp_path: Path) -> None:
    await world.service.storage(BUCKET, "upload", "swept.txt", blob(b"x"), {"upsert": True})
    row = await world.row("swept.txt")
    assert row is not None
    orphan, fresh = str(uuid4()), str(uuid4())
    for name in (row["version"], orphan, fresh, "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
        if name != fresh:
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)

    script = Path(__file__).parent / "clients" / "sweep_blobs.ts"
    argv = deno.command(script, "--allow-net=127.0.0.1", "--allow-env", f"--allow-read={tmp_path}",
                        f"--allow-write={tmp_path}", arguments=[str(tmp_path)])  # fmt: skip
    url = world.stack.cluster.url("supabase_storage_admin", world.stack.secrets.passwords["supabase_storage_admin"])
    process = await asyncio.create_subprocess_exec(
        *argv, env=deno.environment({"DATABASE_URL": url}), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()

    assert out.strip() == b"1"
    assert {path.name for path in tmp_path.iterdir()} == {row["version"], fresh, "notes.txt"}
