"""What the local Storage answers: names, limits, credentials, ranges, signed URLs, lists and buckets."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import asyncpg
import httpx
import pytest
from supabase import AsyncClient, AsyncClientOptions, acreate_client

from local.stack import Stack
from tests.integration.storage_world import BUCKET, LIMITED, PUBLIC, A, B, World, request, storage_world, token
from tests.integration.supabase_js import Refusal, blob, form, raw

MIB = 2**20


@pytest.fixture(scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    """Buckets and callers of this module."""
    async with storage_world(stack) as made:
        yield made


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fescape", "a/..%2f..%2f..%2fescape", "%2e%2e%2fescape", "../../../escape", "%2e%2e/%2e%2e/escape",
     "a%00b", "a%5cb", "a%22b", "a%0ab", "%c3%a9", "x" * 1025],
)  # fmt: skip
async def test_a_name_that_is_none_stores_nothing(world: World, name: str) -> None:
    before = world.files()
    outside = {path.name for path in world.stack.directory.iterdir()}

    status, _ = await request(
        world, "POST", f"/object/{BUCKET}/{name}", b"x", f"apikey: {world.stack.secret_key}", "content-type: text/plain"
    )

    assert status in (400, 404)
    assert world.files() == before
    assert {path.name for path in world.stack.directory.iterdir()} == outside


@pytest.mark.parametrize("method", ["move", "copy"])
async def test_no_object_moves_or_is_copied_to_a_name_that_is_none(world: World, method: str) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/here.txt", blob(b"x"), {"upsert": True})

    with pytest.raises(Refusal) as caught:
        await world.alice.storage(BUCKET, method, f"{A}/here.txt", f"{A}/../../there.txt")

    assert caught.value.code == "InvalidKey"


async def test_names_with_quotes_and_brackets_come_back_as_they_are(world: World) -> None:
    name = f"{A}/it's (1) & $@=;+,!.txt"
    await world.alice.storage(BUCKET, "upload", name, blob(b"x"))

    assert [entry["name"] for entry in await world.alice.storage(BUCKET, "list", A, {"search": "it's"})] == [
        name.split("/")[1]
    ]
    assert await world.alice.bytes_of(BUCKET, name) == b"x"


@pytest.mark.parametrize("wrap", [blob, form, lambda content, type_: raw(content)], ids=["blob", "form", "raw"])
@pytest.mark.parametrize("size", [1001, 5 * MIB], ids=["just", "far"])
async def test_an_upload_beyond_its_buckets_limit_leaves_nothing(world: World, wrap: object, size: int) -> None:
    assert callable(wrap)
    before = world.files()

    with pytest.raises(Refusal) as caught:
        await world.service.storage(
            LIMITED, "upload", "x.txt", wrap(b"x" * size, "text/plain"), {"contentType": "text/plain"}
        )

    assert caught.value == Refusal("413", "EntityTooLarge", "The object exceeded the maximum allowed size")
    assert world.files() == before
    assert await world.row("x.txt", LIMITED) is None


async def test_an_upload_of_exactly_the_limit_passes(world: World) -> None:
    await world.service.storage(LIMITED, "upload", "exact.txt", blob(b"x" * 1000, "text/plain"))


async def test_only_the_buckets_types_pass_and_a_family_counts(world: World) -> None:
    await world.service.storage(LIMITED, "upload", "a.csv", blob(b"x", "text/csv"))
    with pytest.raises(Refusal) as caught:
        await world.service.storage(LIMITED, "upload", "a.gif", blob(b"x", "image/gif"))

    assert caught.value == Refusal("415", "InvalidMimeType", "mime type image/gif is not supported")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda secret: token("x" * 40, A),
        lambda secret: token(secret, A, exp=int(time.time()) - 1),
        lambda secret: token(secret, A, nbf=int(time.time()) + 600),
        lambda secret: token(secret, A, algorithm="none"),
        lambda secret: token(secret, A, algorithm="HS512"),
        lambda secret: token(secret, A, role="postgres"),
        lambda secret: token(secret, A, role=None),
        lambda secret: token(secret, A)[:-2] + "xx",
        lambda secret: "nonsense",
    ],
    ids=["signature", "expired", "not-yet", "alg-none", "alg", "role", "no-role", "tampered", "nonsense"],
)
async def test_a_wrong_token_may_nothing(world: World, wrong: object) -> None:
    assert callable(wrong)
    await world.alice.storage(BUCKET, "upload", f"{A}/secret.txt", blob(b"x"), {"upsert": True})
    headers = {"apikey": world.stack.publishable_key, "authorization": f"Bearer {wrong(world.stack.jwt_secret)}"}

    async with world.http() as client:
        upload = await client.post(f"/object/{BUCKET}/{A}/new.txt", content=b"x", headers=headers)
        listed = await client.post(f"/object/list/{BUCKET}", json={"prefix": A}, headers=headers)
        download = await client.get(f"/object/{BUCKET}/{A}/secret.txt", headers=headers)

    assert [answer.json()["statusCode"] for answer in (upload, listed, download)] == ["403", "403", "404"]
    assert await world.row(f"{A}/new.txt") is None


async def test_a_wrong_key_or_none_may_nothing(world: World) -> None:
    async with world.http() as client:
        wrong = await client.get("/bucket", headers={"apikey": "sb_secret_wrong"})
        none = await client.get("/bucket")

    assert wrong.status_code == 401
    assert none.json()["statusCode"] == "403"


async def test_a_stranger_sees_and_changes_nothing(world: World) -> None:
    name = f"{A}/mine.txt"
    await world.alice.storage(BUCKET, "upload", name, blob(b"mine"), {"upsert": True})
    before = await world.row(name)

    assert await world.bob.storage(BUCKET, "list", A) == []
    assert await world.bob.storage(BUCKET, "remove", [name]) == []
    attempts: dict[str, list[Any]] = {
        "download": [name], "info": [name], "createSignedUrl": [name, 60], "move": [name, f"{B}/x"],
        "copy": [name, f"{B}/x"], "update": [name, blob(b"theirs")], "createSignedUploadUrl": [name, {"upsert": True}],
    }  # fmt: skip
    for method, arguments in attempts.items():
        with pytest.raises(Refusal):
            await world.bob.storage(BUCKET, method, *arguments)
    assert await world.row(name) == before


async def test_a_move_into_anothers_folder_is_refused(world: World) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/own.txt", blob(b"x"), {"upsert": True})
    with pytest.raises(Refusal) as caught:
        await world.alice.storage(BUCKET, "move", f"{A}/own.txt", f"{B}/own.txt")

    assert caught.value.status == "403"


async def test_a_download_answers_ranges_and_validators(world: World) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/r.html", blob(b"0123456789", "text/html"), {"upsert": True})
    path = f"/object/authenticated/{BUCKET}/{A}/r.html"

    async with world.http(world.alice) as client:
        whole = await client.get(path)
        assert (whole.content, whole.headers["content-length"]) == (b"0123456789", "10")
        assert whole.headers["content-type"] == "text/plain"
        assert whole.headers["cache-control"] == "max-age=3600"
        for header, content in {
            "bytes=2-4": b"234",
            "bytes=7-": b"789",
            "bytes=-2": b"89",
            "bytes=8-99": b"89",
        }.items():
            part = await client.get(path, headers={"range": header})
            assert (part.status_code, part.content) == (206, content)
            assert part.headers["content-range"].endswith("/10")
        assert (await client.get(path, headers={"range": "bytes=10-"})).status_code == 416
        same = await client.get(path, headers={"if-none-match": whole.headers["etag"]})
        assert (same.status_code, same.content) == (304, b"")
        other = await client.get(path, headers={"if-none-match": '"other"'})
        assert other.status_code == 200
        head = await client.head(path)
        assert (head.status_code, head.headers["content-length"], head.content) == (200, "10", b"")
        saved = await client.get(path, params={"download": "näme.txt"})
        assert quote("näme.txt") in saved.headers["content-disposition"]


async def test_a_public_bucket_serves_everybody_and_a_private_one_nobody(world: World) -> None:
    for bucket in (PUBLIC, BUCKET):
        await world.service.storage(bucket, "upload", "p.txt", blob(b"x"), {"upsert": True})

    async with world.http() as client:
        assert (await client.get(f"/object/public/{PUBLIC}/p.txt")).content == b"x"
        assert (await client.get(f"/object/{PUBLIC}/p.txt")).content == b"x"
        for path in ("public/", ""):
            refused = await client.get(f"/object/{path}{BUCKET}/p.txt")
            assert (refused.status_code, refused.json()["code"]) == (400, "NoSuchBucket")


async def test_a_signed_url_opens_its_own_object_only(world: World) -> None:
    for name in ("s.txt", "s2.txt"):
        await world.alice.storage(BUCKET, "upload", f"{A}/{name}", blob(name.encode()), {"upsert": True})
    url = (await world.alice.storage(BUCKET, "createSignedUrl", f"{A}/s.txt", 60))["signedUrl"]
    upload = await world.alice.storage(BUCKET, "createSignedUploadUrl", f"{A}/s3.txt")

    async with world.http() as client:
        assert (await client.get(url)).content == b"s.txt"
        assert (await client.get(url.replace("s.txt", "s2.txt"))).json()["code"] == "InvalidSignature"
        for wrong in (upload["token"], world.alice.token, "x.y.z", ""):
            refused = await client.get(f"/object/sign/{BUCKET}/{A}/s.txt", params={"token": wrong})
            assert refused.status_code == 400
        read_token = url.split("token=")[1]
        refused = await client.put(f"/object/upload/sign/{BUCKET}/{A}/s3.txt?token={read_token}", content=b"x")
        assert refused.json()["code"] == "InvalidJWT"
        as_user = await client.get("/bucket", headers={"authorization": f"Bearer {read_token}"})
        assert as_user.json()["statusCode"] == "403"
    assert await world.row(f"{A}/s3.txt") is None


@pytest.fixture
async def python_client(world: World) -> AsyncIterator[AsyncClient]:
    """The Python client with the secret key, as a server uses it."""
    async with httpx.AsyncClient() as client:  # its own would stay open
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=client)
        yield await acreate_client(world.stack.api_url, world.stack.secret_key, options)


# The client passes settings in a way that its own storage part has deprecated.
@pytest.mark.filterwarnings("ignore:The '(timeout|verify|proxy)' parameter is deprecated")
async def test_the_python_client_stores_reads_lists_signs_moves_and_removes(
    world: World, python_client: AsyncClient
) -> None:
    bucket = python_client.storage.from_(BUCKET)
    options = {"content-type": "text/markdown", "upsert": "true", "metadata": {"k": 1}}
    await bucket.upload("py/a b.md", b"hello", options)  # type: ignore[arg-type]

    assert await bucket.download("py/a b.md") == b"hello"
    assert (await bucket.info("py/a b.md"))["metadata"] == {"k": 1}
    assert await bucket.exists("py/a b.md")
    assert not await bucket.exists("py/none.md")
    assert [entry["name"] for entry in await bucket.list("py")] == ["a b.md"]
    page = await bucket.list_v2({"prefix": "py/", "limit": 1})
    assert [found.name for found in page.objects] == ["py/a b.md"]
    signed = await bucket.create_signed_url("py/a b.md", 60)
    async with world.http() as client:
        assert (await client.get(str(signed["signedURL"]))).content == b"hello"
    upload = await bucket.create_signed_upload_url("py/c.md")
    await bucket.upload_to_signed_url("py/c.md", upload["token"], b"signed")
    await bucket.copy("py/c.md", "py/d.md")
    await bucket.move("py/d.md", "py/e.md")
    assert await bucket.download("py/e.md") == b"signed"
    removed = await bucket.remove(["py/a b.md", "py/c.md", "py/e.md", "py/none.md"])
    assert len(removed) == 3


async def test_lists_go_by_folder_and_by_page(world: World) -> None:
    for name in ("l/b.txt", "l/a.txt", "l/sub/c.txt", "l/sub/d.txt", "l/sub2/e.txt", "lx.txt"):
        await world.service.storage(BUCKET, "upload", name, blob(b"x"), {"upsert": True})

    entries = await world.service.storage(BUCKET, "list", "l", {"sortBy": {"column": "name", "order": "desc"}})
    assert [(entry["name"], entry["id"] is None) for entry in entries] == [
        ("sub2", True), ("sub", True), ("b.txt", False), ("a.txt", False),
    ]  # fmt: skip
    paged = await world.service.storage(BUCKET, "list", "l", {"limit": 1, "offset": 2})
    assert [entry["name"] for entry in paged] == ["a.txt"]
    keys: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await world.service.storage(
            BUCKET, "listV2", {"prefix": "l/", "limit": 2, "with_delimiter": True} | cursor
        )
        keys += [entry["key"] for entry in [*page["objects"], *page["folders"]]]
        if not page["hasNext"]:
            break
        cursor = {"cursor": page["nextCursor"]}
    assert keys == ["l/a.txt", "l/b.txt", "l/sub/", "l/sub2/"]


async def test_buckets_are_made_changed_and_seen_by_the_secret_key_only(world: World) -> None:
    name = "recorded-made"
    await world.service.storage(None, "createBucket", name, {"public": False, "fileSizeLimit": "1MB"})
    with pytest.raises(Refusal) as caught:
        await world.service.storage(None, "createBucket", name)
    assert caught.value.code == "BucketAlreadyExists"
    await world.service.storage(None, "updateBucket", name, {"public": True, "allowedMimeTypes": ["image/*"]})
    bucket = await world.service.storage(None, "getBucket", name)
    assert (bucket["public"], bucket["file_size_limit"], bucket["allowed_mime_types"]) == (True, 1_000_000, ["image/*"])

    assert name not in [entry["id"] for entry in await world.alice.storage(None, "listBuckets")]
    attempts: dict[str, list[Any]] = {
        "createBucket": ["recorded-bobs"], "getBucket": [name], "deleteBucket": [name], "emptyBucket": [name],
        "updateBucket": [name, {"public": False}],
    }  # fmt: skip
    for method, arguments in attempts.items():
        with pytest.raises(Refusal):
            await world.alice.storage(None, method, *arguments)

    await world.service.storage(None, "deleteBucket", name)
    with pytest.raises(Refusal) as caught:
        await world.service.storage(None, "getBucket", name)
    assert caught.value.code == "NoSuchBucket"


async def test_deleting_rows_past_the_api_is_refused(world: World) -> None:
    postgres = await asyncpg.connect(world.stack.database_url)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await postgres.execute("delete from storage.objects")
    finally:
        await postgres.close()
