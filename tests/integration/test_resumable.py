"""Resumable uploads through the real tus-js-client: their row events, cuts, limits, tokens, and what they leave."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from local.stack import Stack
from tests.cutting_line import cutting_line
from tests.integration.storage_events import Event
from tests.integration.storage_world import BUCKET, LIMITED, A, World, storage_world
from tests.integration.supabase_js import Caller, Refusal, blob
from tests.integration.tus_js import RESUMABLE, Broken, TusJs, tus_js

MIB = 2**20
META = '{"tus": 1}'
TUS = {"tus-resumable": "1.0.0"}
OFFSET = TUS | {"content-type": "application/offset+octet-stream"}
EXISTS = Refusal("409", None, "The resource already exists")


@pytest.fixture(scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    """Buckets and callers of this module."""
    async with storage_world(stack) as made:
        yield made


@pytest.fixture(scope="module")
async def tus(stack: Stack) -> AsyncIterator[TusJs]:
    """The client."""
    async with tus_js(stack.api_url) as made:
        yield made


def probed(operation: str, name: str, **differs: object) -> Event:
    """A probe by the owner."""
    made = Event(
        "insert", False, "authenticated", True, f"storage.tus.upload.{operation}", f"{BUCKET}/{A}/{name}", True, A,
        False, "partial", META,
    )  # fmt: skip
    return replace(made, **differs)  # type: ignore[arg-type]


def stored(operation: str, name: str, **differs: object) -> Event:
    """The final write."""
    made = Event(
        "insert", True, "service_role", False, f"storage.tus.upload.{operation}", f"{BUCKET}/{A}/{name}", False, A,
        True, "full", META,
    )  # fmt: skip
    return replace(made, **differs)  # type: ignore[arg-type]


def partials(world: World) -> set[str]:
    """The files of unfinished uploads."""
    return {path.name for path in (world.blobs / "resumable").iterdir()}


async def begin(world: World, caller: Caller, name: str, size: int, **headers: str) -> str:
    """Create an upload as a plain HTTP client and return its address."""
    pairs = {"bucketName": BUCKET, "objectName": name}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())
    async with world.http(caller) as client:
        given = TUS | {"upload-length": str(size), "upload-metadata": metadata} | headers
        answer = await client.post("/upload/resumable", headers=given)
    assert answer.status_code == 201, answer.text
    assert answer.headers["upload-expires"]
    return str(answer.headers["location"])


async def test_resumable_uploads_make_the_recorded_row_events(world: World, tus: TusJs) -> None:
    who, meta = world.alice.headers, {"metadata": META}
    await world.recorder.raw()

    once = {"uploadDataDuringCreation": True}
    await tus.upload(who, BUCKET, f"{A}/tus.txt", b"tus bytes", metadata=meta, **once)
    assert await world.recorder.events() == [probed("create", "tus.txt"), stored("create", "tus.txt")]

    content = os.urandom(13 * MIB)
    await tus.upload(who, BUCKET, f"{A}/tusbig.bin", content, metadata=meta, chunkSize=8 * MIB)
    part = probed("part", "tusbig.bin")
    assert await world.recorder.events() == [probed("create", "tusbig.bin"), part, part, stored("part", "tusbig.bin")]
    assert await world.alice.bytes_of(BUCKET, f"{A}/tusbig.bin") == content

    with pytest.raises(Refusal) as caught:
        await tus.upload(who, BUCKET, f"{A}/tus.txt", b"again", **once)
    assert caught.value == EXISTS
    assert await world.recorder.events() == []

    before = await world.row(f"{A}/tus.txt")
    await tus.upload(who, BUCKET, f"{A}/tus.txt", b"tus bytes2", metadata=meta, upsert=True, **once)
    changed = ("metadata", "updated_at", "version")
    assert await world.recorder.events() == [
        probed("create", "tus.txt", op="update", changed=changed),
        stored("create", "tus.txt", op="update", changed=changed),
    ]
    after = await world.row(f"{A}/tus.txt")
    assert before is not None
    assert after is not None
    assert before["id"] == after["id"]
    known = json.loads(after["metadata"])
    assert (known["mimetype"], known["cacheControl"], known["size"]) == ("text/markdown", "max-age=60", 10)

    await begin(world, world.alice, f"{A}/tus-abandon.bin", 100)
    assert await world.recorder.events() == [
        probed("create", "tus-abandon.bin", metadata="contentLength", user_metadata="null")
    ]


async def unfinished(world: World, tus: TusJs, name: str, content: bytes) -> str:
    """Upload until the connection breaks in the middle, and return the upload's address on the direct line."""
    async with cutting_line(world.stack.server.port, [len(content) // 2]) as line:
        with pytest.raises(Broken) as caught:
            await tus.upload(world.alice.headers, BUCKET, name, content, port=line.port, retries=False)
    assert caught.value.url is not None
    return caught.value.url.replace(f":{line.port}/", f":{world.stack.server.port}/")


async def test_an_upload_goes_on_where_the_connection_broke(world: World, tus: TusJs) -> None:
    content = os.urandom(6 * MIB)
    name = f"{A}/cut.bin"
    url = await unfinished(world, tus, name, content)
    assert await world.row(name) is None

    async with world.http(world.alice) as client:
        asked = await client.head(url, headers=TUS)
    assert asked.headers["upload-length"] == str(len(content))
    assert 0 < int(asked.headers["upload-offset"]) < len(content)

    await world.recorder.raw()
    await tus.upload(world.alice.headers, BUCKET, name, content, url=url)
    assert [event.committed for event in await world.recorder.events()] == [False, True]
    assert await world.alice.bytes_of(BUCKET, name) == content


async def test_a_client_goes_on_by_itself_however_often_the_connection_breaks(world: World, tus: TusJs) -> None:
    content = os.urandom(6 * MIB)
    cuts = [len(content) * cut // 11 for cut in range(1, 11)]
    await world.recorder.raw()
    async with cutting_line(world.stack.server.port, cuts) as line:
        await tus.upload(world.alice.headers, BUCKET, f"{A}/ten.bin", content, port=line.port)

    assert line.broken == len(cuts)
    events = await world.recorder.events()
    assert [event.committed for event in events] == [False] * (len(events) - 1) + [True]
    assert await world.alice.bytes_of(BUCKET, f"{A}/ten.bin") == content


async def test_an_upload_goes_on_after_the_server_was_started_anew(world: World, tus: TusJs) -> None:
    content = os.urandom(3 * MIB)
    name = f"{A}/restart.bin"
    url = await unfinished(world, tus, name, content)

    await world.stack.restart_server()
    await tus.upload(world.alice.headers, BUCKET, name, content, url=url)

    assert await world.alice.bytes_of(BUCKET, name) == content


@pytest.mark.parametrize("upsert", [False, True])
async def test_a_client_whose_last_answer_was_lost_hears_that_all_arrived_and_nothing_happens_twice(
    world: World, tus: TusJs, upsert: bool
) -> None:
    name, content = f"{A}/last-{upsert}.bin", os.urandom(MIB)
    await world.recorder.raw()
    async with cutting_line(world.stack.server.port, lose_answer_after=MIB) as line:
        await tus.upload(world.alice.headers, BUCKET, name, content, port=line.port, upsert=upsert)
    assert line.broken == 1
    assert [event.committed for event in await world.recorder.events()] == [False, False, True]
    assert await world.alice.bytes_of(BUCKET, name) == content


async def test_nothing_can_be_added_to_a_finished_upload_nor_taken_from_it(world: World, tus: TusJs) -> None:
    name, content = f"{A}/done.bin", b"x" * 1000
    url = await tus.upload(world.alice.headers, BUCKET, name, content, upsert=True)
    row = await world.row(name)
    patch = OFFSET | {"upload-offset": "1000", "x-upsert": "true"}
    async with world.http(world.alice) as client:
        asked = await client.head(url, headers=TUS)
        empty = await client.patch(url, headers=patch)
        more = await client.patch(url, headers=patch, content=b"more")
        ended = await client.delete(url, headers=TUS | {"x-upsert": "true"})

    assert asked.headers["upload-offset"] == "1000"
    assert (empty.status_code, more.status_code, ended.status_code) == (204, 413, 400)
    assert await world.row(name) == row
    assert await world.alice.bytes_of(BUCKET, name) == content


async def test_an_upload_whose_row_was_refused_is_begun_anew(world: World, tus: TusJs) -> None:
    files, begun = world.files(), partials(world)
    final = "current_setting('role') = 'service_role'"
    async with world.raising(final):
        with pytest.raises(Refusal) as caught:
            await tus.upload(world.alice.headers, BUCKET, f"{A}/refused.bin", b"x" * 10)
    assert caught.value.status == "500"
    assert "hidden words" not in caught.value.message
    assert (world.files(), partials(world)) == (files, begun)

    await tus.upload(world.alice.headers, BUCKET, f"{A}/refused.bin", b"y" * 10)
    assert await world.alice.bytes_of(BUCKET, f"{A}/refused.bin") == b"y" * 10


async def test_a_policy_that_refuses_with_words_is_heard_before_any_byte_is_kept(world: World, tus: TusJs) -> None:
    begun = partials(world)
    async with world.raising("new.version = '1'", "42501", "Your quota is used up."):
        with pytest.raises(Refusal) as caught:
            await tus.upload(world.alice.headers, BUCKET, f"{A}/quota.bin", b"x")

    assert (caught.value.status, caught.value.message) == ("403", "Your quota is used up.")
    assert partials(world) == begun


@pytest.mark.parametrize(
    ("kind", "content", "name", "status"),
    [
        ("too large", b"x" * 1001, "large.txt", "413"),
        ("of another type", b"x", "type.pdf", "415"),
        ("a folder marker with bytes", b"x", "f/.emptyFolderPlaceholder", "413"),
        ("a name that is none", b"x", "../x", "400"),
        ("a name that is none", b"x", "n\u00e9.txt", "400"),
    ],
)
async def test_an_upload_beyond_the_limits_is_refused_before_its_bytes(
    world: World, tus: TusJs, kind: str, content: bytes, name: str, status: str
) -> None:
    begun = partials(world)
    mime_type = {"contentType": "application/pdf"} if kind == "of another type" else {}
    with pytest.raises(Refusal) as caught:
        await tus.upload(world.alice.headers, LIMITED, f"{A}/{name}", content, metadata=mime_type)

    assert caught.value.status == status
    assert partials(world) == begun


async def test_an_upload_without_a_length_is_stopped_at_the_limit(world: World) -> None:
    pairs = {"bucketName": LIMITED, "objectName": f"{A}/deferred.txt", "contentType": "text/plain"}
    metadata = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items())
    async with world.http(world.alice) as client:
        made = await client.post(
            "/upload/resumable", headers=TUS | {"upload-defer-length": "1", "upload-metadata": metadata}
        )
        url = made.headers["location"]
        patch = OFFSET | {"upload-offset": "0"}
        over = await client.patch(url, headers=patch, content=b"x" * 1001)
        whole = await client.patch(url, headers=patch | {"upload-length": "5"}, content=b"12345")

    assert (made.status_code, over.status_code, whole.status_code) == (201, 413, 204)
    assert await world.alice.bytes_of(LIMITED, f"{A}/deferred.txt") == b"12345"


async def test_nobody_writes_into_anothers_folder(world: World, tus: TusJs) -> None:
    for caller in (world.bob, world.anonymous):
        with pytest.raises(Refusal) as caught:
            await tus.upload(caller.headers, BUCKET, f"{A}/theirs.txt", b"x")
        assert caught.value == Refusal("403", None, "new row violates row-level security policy")

    url = await begin(world, world.alice, f"{A}/hers.txt", 3)
    async with world.http(world.bob) as client:
        answer = await client.patch(url, headers=OFFSET | {"upload-offset": "0"}, content=b"bad")
        ended = await client.delete(url, headers=TUS)
    async with world.http() as client:
        nobody = await client.head(url, headers=TUS)
    assert (answer.status_code, ended.status_code, nobody.status_code) == (403, 403, 400)
    assert await world.row(f"{A}/hers.txt") is None


async def test_an_address_that_was_changed_leads_nowhere(world: World, stack: Stack) -> None:
    url = await begin(world, world.alice, f"{A}/mine.txt", 3)
    encoded = url.rsplit("/", 1)[1]
    bucket, *folders, version = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode().split("/")
    assert (bucket, folders) == (BUCKET, [A, "mine.txt"])
    wrong = [f"{BUCKET}/{A}/other.txt/{version}", f"{BUCKET}/{A}/mine.txt/{uuid4()}", f"{BUCKET}/{A}/mine.txt/../../x",
             version, ""]  # fmt: skip
    async with world.http(world.alice) as client:
        for text in wrong:
            changed = base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
            address = f"{stack.api_url}{RESUMABLE}/{changed}"
            answer = await client.patch(address, headers=OFFSET | {"upload-offset": "0"}, content=b"abc")
            assert answer.status_code in (400, 404), (text, answer.text)
    assert await world.row(f"{A}/other.txt") is None


async def test_a_token_for_an_upload_lets_anybody_resume_that_one_upload(world: World, tus: TusJs) -> None:
    signed = await world.alice.storage(BUCKET, "createSignedUploadUrl", f"{A}/token.bin")
    content = os.urandom(2 * MIB)
    await world.recorder.raw()
    with_token = {"apikey": world.anonymous.key, "x-signature": signed["token"]}

    async with cutting_line(world.stack.server.port, [MIB]) as line:
        to = {"path": f"{RESUMABLE}/sign", "port": line.port}
        address = await tus.upload(with_token, BUCKET, f"{A}/token.bin", content, **to)  # type: ignore[arg-type]
    assert f"{RESUMABLE}/sign/" in address
    assert line.broken == 1
    events = await world.recorder.events()
    assert [event.committed for event in events] == [False, False, False, True]
    assert {event.role for event in events} == {"service_role"}
    assert events[-1].owner == A
    assert await world.alice.bytes_of(BUCKET, f"{A}/token.bin") == content

    for headers, name in ((with_token, "elsewhere.bin"), ({"apikey": world.anonymous.key}, "token2.bin")):
        with pytest.raises(Refusal) as caught:
            await tus.upload(headers, BUCKET, f"{A}/{name}", b"x", path=f"{RESUMABLE}/sign")
        assert caught.value.status == "400"


async def test_an_upload_may_be_ended_and_is_gone(world: World) -> None:
    begun = partials(world)
    url = await begin(world, world.alice, f"{A}/ended.txt", 3)
    async with world.http(world.alice) as client:
        ended = await client.delete(url, headers=TUS)
        asked = await client.head(url, headers=TUS)

    assert (ended.status_code, asked.status_code) == (204, 404)
    assert partials(world) == begun


async def test_a_start_removes_uploads_that_expired_and_no_others(world: World, tus: TusJs) -> None:
    old = await begin(world, world.alice, f"{A}/old.txt", 3)
    fresh = await begin(world, world.alice, f"{A}/fresh.txt", 3)
    version = base64.urlsafe_b64decode(old.rsplit("/", 1)[1] + "==").decode().rsplit("/", 1)[1]
    directory: Path = world.blobs / "resumable"
    for path in (directory / version, directory / f"{version}.json"):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    before = partials(world)

    await world.stack.restart_server()
    deadline = time.monotonic() + 10
    while len(before - partials(world)) < 2:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)

    assert before - partials(world) == {version, f"{version}.json"}
    await tus.upload(world.alice.headers, BUCKET, f"{A}/old.txt", b"new", url=old)  # begun anew by the client itself
    await tus.upload(world.alice.headers, BUCKET, f"{A}/fresh.txt", b"abc", url=fresh)
    assert await world.alice.bytes_of(BUCKET, f"{A}/fresh.txt") == b"abc"


async def test_two_parts_at_one_offset_are_one_part(world: World) -> None:
    url = await begin(world, world.alice, f"{A}/twice.txt", 3)
    async with world.http(world.alice) as client:
        patch = OFFSET | {"upload-offset": "0"}
        answers = await asyncio.gather(*(client.patch(url, headers=patch, content=b"abc") for _ in range(5)))

    assert sum(answer.status_code == 204 for answer in answers) == 1
    row = await world.row(f"{A}/twice.txt")
    assert isinstance(row, asyncpg.Record)
    assert await world.alice.bytes_of(BUCKET, f"{A}/twice.txt") == b"abc"


async def test_an_empty_file_and_one_replaced_by_a_blob_are_objects_like_others(world: World, tus: TusJs) -> None:
    await tus.upload(world.alice.headers, BUCKET, f"{A}/zero.txt", b"")
    assert await world.alice.bytes_of(BUCKET, f"{A}/zero.txt") == b""
    await world.alice.storage(BUCKET, "upload", f"{A}/zero.txt", blob(b"now"), {"upsert": True})
    assert await world.alice.bytes_of(BUCKET, f"{A}/zero.txt") == b"now"
