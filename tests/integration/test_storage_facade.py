"""The local Storage makes the row events that were recorded on the real server, and fails as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from local.stack import Stack
from tests.integration.storage_events import Event
from tests.integration.storage_world import BUCKET, OTHER, A, World, storage_world
from tests.integration.supabase_js import Refusal, blob, form, raw

ADDED = ("updated_at", "version")
REWRITTEN = ("metadata", "updated_at", "version")
EXISTS = Refusal("409", "KeyAlreadyExists", "The resource already exists")


@pytest.fixture(scope="module")
async def world(stack: Stack) -> AsyncIterator[World]:
    """Buckets and callers of this module."""
    async with storage_world(stack) as made:
        yield made


def probed(operation: str, name: str, *, user_metadata: str = "null", bucket: str = BUCKET) -> Event:
    """A probe of a new object by its owner."""
    return Event(
        "insert", False, "authenticated", True, f"storage.object.{operation}", f"{bucket}/{A}/{name}", True, A, False,
        "partial", user_metadata,
    )  # fmt: skip


def stored(operation: str, name: str, *, user_metadata: str = "{}", bucket: str = BUCKET) -> Event:
    """The final write of a new object."""
    return Event(
        "insert", True, "service_role", False, f"storage.object.{operation}", f"{bucket}/{A}/{name}", False, A, True,
        "full", user_metadata,
    )  # fmt: skip


def created(operation: str, name: str, **both: str) -> list[Event]:
    """Both of them."""
    return [probed(operation, name, **both), stored(operation, name, **({"user_metadata": "{}"} | both))]


def updated(operation: str, name: str, before: str = "{}") -> list[Event]:
    """Probe and final write over an object with the user metadata `before`, which the final write replaces."""
    return [
        replace(probed(operation, name, user_metadata=before), op="update", changed=REWRITTEN),
        replace(
            stored(operation, name),
            op="update",
            changed=REWRITTEN if before == "{}" else ("metadata", "updated_at", "user_metadata", "version"),
        ),
    ]


def moved(name: str, changed: tuple[str, ...], bucket: str = BUCKET) -> list[Event]:
    """Probe and final write of a move. The probe carries the new version and the old metadata."""
    probe = replace(probed("move", name, bucket=bucket), op="update", probe_version=False, metadata="full",
                    user_metadata="{}", changed=tuple(sorted((*changed, *ADDED))))  # fmt: skip
    final = replace(stored("move", name, bucket=bucket), op="update", changed=tuple(sorted((*changed, *REWRITTEN))))
    return [probe, final]


def by_service(events: list[Event]) -> list[Event]:
    """The same by the secret key: nobody's id anywhere."""
    return [replace(event, role="service_role", user=False, owner=None) for event in events]


def deleted(operation: str, *names: str) -> list[Event]:
    """One committed delete each, the file still there, by the caller."""
    return [replace(stored(operation, name), op="delete", role="authenticated", user=True) for name in names]


def emptied(*names: str, bucket: str = BUCKET) -> list[Event]:
    """One committed delete each by emptyBucket, which has no operation."""
    return [
        replace(event, role="service_role", user=False, operation="")
        for event in (replace(stored("", name, bucket=bucket), op="delete") for name in names)
    ]


async def test_every_recorded_operation_makes_the_recorded_row_events(world: World) -> None:
    alice, bob, service = world.alice, world.bob, world.service
    signed: dict[str, str] = {}
    await world.recorder.raw()

    async def does(call: Awaitable[Any], *expected: Event, refused: Refusal | None = None) -> Any:
        answer = None
        if refused is None:
            answer = await call
        else:
            with pytest.raises(Refusal) as caught:
                await call
            assert caught.value == refused
        assert await world.recorder.events() == list(expected)
        return answer

    def on(caller: Any, method: str, name: str, *rest: Any, bucket: str = BUCKET) -> Awaitable[Any]:
        return caller.storage(bucket, method, f"{A}/{name}", *rest)  # type: ignore[no-any-return]

    # 01 to 04: upload, upsert, update
    meta = '{"k": 1}'
    first = await does(on(alice, "upload", "a.txt", blob(b"hello"), {"metadata": {"k": 1}}),
                       *created("upload", "a.txt", user_metadata=meta))  # fmt: skip
    assert first["fullPath"] == f"{BUCKET}/{A}/a.txt"
    await does(on(alice, "upload", "a.txt", blob(b"hello")), refused=EXISTS)
    await does(on(alice, "upload", "raw.txt", raw(b"raw bytes"), {"contentType": "text/plain"}),
               *created("upload", "raw.txt"))  # fmt: skip
    upsert = {"upsert": True}
    second = await does(on(alice, "upload", "a.txt", blob(b"hello v2"), upsert), *updated("upload", "a.txt", meta))
    third = await does(on(alice, "upload", "a.txt", blob(b"hello v2"), upsert), *updated("upload", "a.txt"))
    assert first["id"] == second["id"] == third["id"]
    await does(on(alice, "upload", "up-new.txt", blob(b"x"), upsert), *created("upload", "up-new.txt"))
    await does(on(alice, "update", "a.txt", blob(b"hello v3")), *updated("upload_update", "a.txt"))
    await does(on(alice, "update", "never.txt", blob(b"xx")), *created("upload_update", "never.txt"))

    # 05: signed upload
    url = await does(on(alice, "createSignedUploadUrl", "signed.txt"), probed("sign_upload_url", "signed.txt"))
    signed["token"] = url["token"]
    as_service = replace(probed("upload_signed", "signed.txt"), role="service_role", user=False)
    await does(on(alice, "uploadToSignedUrl", "signed.txt", signed["token"], blob(b"by signed")),
               as_service, stored("upload_signed", "signed.txt"))  # fmt: skip
    await does(on(alice, "uploadToSignedUrl", "signed.txt", signed["token"], blob(b"x")), refused=EXISTS)

    # 07: move
    before = await world.row(f"{A}/raw.txt")
    await does(on(alice, "move", "raw.txt", f"{A}/moved.txt"), *moved("moved.txt", ("name",)))
    after = await world.row(f"{A}/moved.txt")
    assert before is not None
    assert after is not None
    assert after["id"] == before["id"]
    assert after["version"] != before["version"]
    await does(on(alice, "move", "moved.txt", f"{A}/moved2.txt", {"destinationBucket": OTHER}),
               *moved("moved2.txt", ("bucket_id", "name"), OTHER))  # fmt: skip
    await does(on(alice, "move", "up-new.txt", f"{A}/a.txt"), refused=EXISTS)
    await does(on(alice, "move", "a.txt", f"{A}/a.txt"), moved("a.txt", ())[0])

    # 08: copy
    copy_probe = replace(probed("copy", "copy.txt"), metadata="full", user_metadata="{}")
    await does(on(alice, "copy", "a.txt", f"{A}/copy.txt"), copy_probe, stored("copy", "copy.txt"))
    await does(on(alice, "copy", "a.txt", f"{A}/copy.txt"), refused=EXISTS)

    # 09: reading makes no event
    unread = await world.row(f"{A}/a.txt")
    assert await world.alice.bytes_of(BUCKET, f"{A}/a.txt") == b"hello v3"
    await does(on(alice, "info", "a.txt"))
    await does(alice.storage(BUCKET, "list", A))
    await does(on(alice, "createSignedUrl", "a.txt", 60))
    assert await world.row(f"{A}/a.txt") == unread

    # 11: refused by the policies; the secret key
    await does(on(bob, "upload", "theirs.txt", blob(b"x")),
               refused=Refusal("403", "AccessDenied", "new row violates row-level security policy"))  # fmt: skip
    await does(on(service, "upload", "svc.txt", blob(b"svc")), *by_service(created("upload", "svc.txt")))

    # 12: delete
    removed = await does(alice.storage(BUCKET, "remove", [f"{A}/a.txt", f"{A}/copy.txt"]),
                         *deleted("delete_many", "a.txt", "copy.txt"))  # fmt: skip
    assert {row["name"] for row in removed} == {f"{A}/a.txt", f"{A}/copy.txt"}
    assert await does(bob.storage(BUCKET, "remove", [f"{A}/never.txt"])) == []
    async with world.http(alice) as client:
        answer = await client.delete(f"/object/{BUCKET}/{A}/never.txt")
    assert (answer.status_code, answer.json()) == (200, {"message": "Successfully deleted"})
    assert await world.recorder.events() == deleted("delete", "never.txt")

    # 13: names
    names = ["folder/.emptyFolderPlaceholder", "zero.txt", "my file (1).txt"]
    for name in names:
        content = b"x" if name.startswith("my") else b""
        await does(on(alice, "upload", name, blob(content)), *created("upload", name))
    await does(on(alice, "upload", "résumé.txt", blob(b"x")),
               refused=Refusal("400", "InvalidKey", f"Invalid key: {A}/résumé.txt"))  # fmt: skip
    await does(on(alice, "upload", "form.csv", form(b"a,b", "text/csv")), *created("upload", "form.csv"))

    # 14, 15: empty and delete buckets
    left = emptied("up-new.txt", "signed.txt", *names, "form.csv")
    unowned = replace(emptied("svc.txt")[0], owner=None)
    assert "queued" in (await service.storage(None, "emptyBucket", BUCKET))["message"]
    different = set(await world.recorder.events()) ^ {*left, unowned}
    # Whole: seen twice in some hundred runs, on a busy machine.
    assert not different, "\n".join(map(str, different))
    not_empty = Refusal("409", "ResourceNotEmpty", "The bucket you tried to delete is not empty")
    await does(service.storage(None, "deleteBucket", OTHER), refused=not_empty)
    await does(service.storage(None, "emptyBucket", OTHER), *emptied("moved2.txt", bucket=OTHER))
    await does(service.storage(None, "deleteBucket", OTHER))
    await service.storage(None, "createBucket", OTHER, {"public": False})
    assert await world.admin.fetchval("select count(*) from storage.objects where bucket_id like 'recorded%'") == 0


async def test_a_stored_object_has_the_metadata_of_its_bytes(world: World) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/m.md", blob(b"hello", "text/markdown"), {"cacheControl": "60"})

    row = await world.row(f"{A}/m.md")
    assert row is not None
    types = await world.admin.fetchval("select jsonb_typeof(metadata) from storage.objects where id = $1", row["id"])
    metadata = await world.admin.fetchval("select metadata from storage.objects where id = $1", row["id"])
    assert types == "object"
    for part in ('"eTag": "\\"5d41402abc4b2a76b9719d911017c592\\""', '"size": 5', '"mimetype": "text/markdown"',
                 '"cacheControl": "max-age=60"', '"contentLength": 5', '"httpStatusCode": 200'):  # fmt: skip
        assert part in metadata
    assert str(row["owner"]) == row["owner_id"] == A


async def test_a_key_that_overwrites_or_moves_keeps_the_owner(world: World) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/kept.txt", blob(b"1"))
    await world.service.storage(BUCKET, "upload", f"{A}/kept.txt", blob(b"2"), {"upsert": True})
    await world.service.storage(BUCKET, "move", f"{A}/kept.txt", f"{A}/kept2.txt")

    row = await world.row(f"{A}/kept2.txt")
    assert row is not None
    assert row["owner_id"] == A


PROBE = "current_setting('role') = 'authenticated' and tg_op <> 'DELETE'"
FINAL = "current_setting('role') = 'service_role' and tg_op <> 'DELETE'"
HIDDEN = Refusal("500", "DatabaseError", "database error, code: P0001")
Write = Callable[[World], Awaitable[Any]]
WRITES: dict[str, Write] = {
    "upload": lambda world: world.alice.storage(BUCKET, "upload", f"{A}/new.txt", blob(b"new")),
    "upsert": lambda world: world.alice.storage(BUCKET, "upload", f"{A}/f.txt", blob(b"new"), {"upsert": True}),
    "update": lambda world: world.alice.storage(BUCKET, "update", f"{A}/f.txt", raw(b"new")),
    "move": lambda world: world.alice.storage(BUCKET, "move", f"{A}/f.txt", f"{A}/f2.txt"),
    "copy": lambda world: world.alice.storage(BUCKET, "copy", f"{A}/f.txt", f"{A}/f3.txt"),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("when", [PROBE, FINAL], ids=["probe", "final"])
async def test_a_trigger_that_raises_leaves_row_and_bytes_as_they_were(world: World, write: Write, when: str) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/f.txt", blob(b"old"), {"upsert": True})
    before, files = await world.row(f"{A}/f.txt"), world.files()

    async with world.raising(when):
        with pytest.raises(Refusal) as caught:
            await write(world)

    assert caught.value == HIDDEN
    assert await world.row(f"{A}/f.txt") == before
    assert world.files() == files
    assert await world.alice.bytes_of(BUCKET, f"{A}/f.txt") == b"old"


async def test_a_trigger_that_raises_42501_refuses_in_its_own_words(world: World) -> None:
    async with world.raising(PROBE, "42501", "quota_exceeded: 3 of 3 files"):
        with pytest.raises(Refusal) as caught:
            await WRITES["upload"](world)

    assert caught.value == Refusal("403", "AccessDenied", "quota_exceeded: 3 of 3 files")


async def test_a_delete_that_a_trigger_refuses_keeps_row_and_bytes(world: World) -> None:
    await world.alice.storage(BUCKET, "upload", f"{A}/d.txt", blob(b"old"))

    async with world.raising("tg_op = 'DELETE'"):
        with pytest.raises(Refusal) as caught:
            await world.alice.storage(BUCKET, "remove", [f"{A}/d.txt"])

    assert caught.value == HIDDEN
    assert await world.alice.bytes_of(BUCKET, f"{A}/d.txt") == b"old"


async def test_an_overwrite_a_move_and_a_delete_leave_no_file_behind(world: World) -> None:
    before = world.files()
    await world.alice.storage(BUCKET, "upload", f"{A}/t.txt", blob(b"1"))
    await world.alice.storage(BUCKET, "update", f"{A}/t.txt", blob(b"2"))
    await world.alice.storage(BUCKET, "move", f"{A}/t.txt", f"{A}/t2.txt")
    row = await world.row(f"{A}/t2.txt")
    assert row is not None

    assert world.files() - before == {row["version"]}
    await world.alice.storage(BUCKET, "remove", [f"{A}/t2.txt"])
    assert world.files() == before
