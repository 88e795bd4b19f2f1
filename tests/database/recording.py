"""What a real Storage server was recorded to do to storage.objects, operation by operation.

Every write is tried first with the caller's rights in a transaction that is rolled back, then made for good
as service_role when the bytes are complete. Deletes have no trial and run as the caller. `version` "1" and
metadata without a size mark most trials, but not those of move and copy: only the rollback tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["authenticated", "service_role"]


@dataclass(frozen=True)
class Write:
    """One row event: insert a new object, update one, or delete some."""

    kind: Literal["insert", "update", "delete"]
    role: Role
    name: str
    committed: bool = True
    version: str | None = None
    metadata: dict[str, Any] | None = None
    rename: str | None = None
    bucket: str | None = None
    more: tuple[str, ...] = ()
    owned: bool = True


@dataclass(frozen=True)
class Operation:
    """A client's call: its writes, the jobs that must come of it, and the documents that must go."""

    call: str
    writes: tuple[Write, ...]
    jobs: tuple[tuple[str, int], ...] = ()
    gone: tuple[str, ...] = ()
    conflict: bool = False
    renamed: dict[str, str] = field(default_factory=dict)


def whole(size: int, mimetype: str = "application/octet-stream") -> dict[str, Any]:
    """Return metadata as the final write has it."""
    return {
        "eTag": '"5d41402abc4b2a76b9719d911017c592"', "size": size, "mimetype": mimetype,
        "cacheControl": "max-age=3600", "lastModified": "2026-11-23T20:06:45.424Z",
        "contentLength": size, "httpStatusCode": 200,
    }  # fmt: skip


def trial(kind: Literal["insert", "update"], name: str, role: Role = "authenticated", **change: Any) -> Write:
    """Return the permission probe of an upload."""
    fields = {"metadata": {"mimetype": "text/plain", "contentLength": 9}} | change
    return Write(kind, role, name, committed=False, version="1", **fields)


def final(kind: Literal["insert", "update"], name: str, size: int = 9, **change: Any) -> Write:
    """Return the write that is committed."""
    return Write(kind, "service_role", name, **({"metadata": whole(size)} | change))


def upload(call: str, name: str, size: int = 9, trials: int = 1, role: Role = "authenticated") -> Operation:
    """Return a new object's upload."""
    owned = role == "authenticated"
    tried = tuple(trial("insert", name, role, owned=owned) for _ in range(trials))
    return Operation(call, (*tried, final("insert", name, size, owned=owned)), jobs=((name, 1),))


def overwrite(call: str, name: str, generation: int, size: int = 8, role: Role = "authenticated") -> Operation:
    """Return an upload over an existing object: the id stays, the version changes, also for equal bytes."""
    return Operation(call, (trial("update", name, role), final("update", name, size)), jobs=((name, generation),))


def conflict(call: str, name: str) -> Operation:
    """Return an upload that the unique name refuses."""
    return Operation(call, (trial("insert", name),), conflict=True)


def removal(call: str, *names: str, role: Role = "authenticated", gone: tuple[str, ...] | None = None) -> Operation:
    """Return a deletion: no trial, one transaction."""
    return Operation(call, (Write("delete", role, names[0], more=names[1:]),), gone=names if gone is None else gone)


RECORDING = (
    upload("01 standard upload, multipart", "a.txt", 5),
    conflict("01b the same again without upsert", "a.txt"),
    upload("02 raw body", "raw.txt"),
    overwrite("03 upsert over an existing object", "a.txt", 2),
    overwrite("03b upsert of the same content", "a.txt", 3),
    upload("03c upsert of a new object", "up-new.txt", 1),
    overwrite("04 update (PUT)", "a.txt", 4),
    upload("04b PUT of a new object", "never.txt", 2),
    Operation("05 createSignedUploadUrl", (trial("insert", "signed.txt", metadata={"mimetype": "application/json"}),)),
    Operation(
        "05b uploadToSignedUrl",
        (trial("insert", "signed.txt", "service_role"), final("insert", "signed.txt")),
        jobs=(("signed.txt", 1),),
    ),
    conflict("05c uploadToSignedUrl again", "signed.txt"),
    upload("06 TUS in one part", "tus.txt"),
    upload("06b TUS in two parts", "tusbig.bin", 13631488, trials=3),
    conflict("06c TUS onto an existing object without upsert", "tus.txt"),
    overwrite("06d TUS with upsert", "tus.txt", 2),
    Operation("06e TUS started and abandoned", (trial("insert", "tus-abandon.bin", metadata={"contentLength": 100}),)),
    Operation(
        "07 move",
        (
            Write("update", "authenticated", "raw.txt", committed=False, version="uuid", rename="moved.txt"),
            Write("update", "service_role", "raw.txt", rename="moved.txt"),
        ),
        renamed={"raw.txt": "moved.txt"},
    ),
    Operation(
        "07b move to a bucket that is not watched",
        (
            Write("update", "service_role", "moved.txt", committed=False, rename="moved2.txt", bucket="other"),
            Write("update", "service_role", "moved.txt", rename="moved2.txt", bucket="other"),
        ),
        gone=("moved.txt",),
    ),
    Operation(
        "07c move onto an existing object",
        (Write("update", "authenticated", "a.txt", committed=False, rename="tus.txt"),),
        conflict=True,
    ),
    Operation(
        "07d move to the same name",
        (Write("update", "authenticated", "a.txt", committed=False, version="uuid"),),
    ),
    Operation(
        "08 copy",
        (trial("insert", "copy.txt", metadata=whole(8)), final("insert", "copy.txt", 8)),
        jobs=(("copy.txt", 1),),
    ),
    conflict("08b copy onto an existing object", "copy.txt"),
    Operation("09 download, list, info, sign", ()),
    upload("10 S3 put with an access key", "s3.txt", 5, role="service_role"),
    upload("10b S3 put with a session token", "s3u.txt", 5),
    overwrite("10c S3 overwrite", "s3.txt", 2, role="service_role"),
    upload("10d S3 multipart", "s3mp.bin", 6000000, trials=3),
    overwrite("10e S3 copy onto itself", "s3.txt", 3, role="service_role"),
    removal("10f S3 delete", "s3u.txt"),
    upload("11b upload with the secret key", "svc.txt", 3, role="service_role"),
    removal("12 remove of two", "a.txt", "copy.txt"),
    removal("12c single DELETE", "tus.txt"),
    Operation(
        "13 an empty folder of Studio's",
        (
            trial("insert", "folder/.emptyFolderPlaceholder"),
            final("insert", "folder/.emptyFolderPlaceholder", 0),
        ),
    ),
    upload("13b zero bytes", "zero.txt", 0),
    upload("13c spaces and parentheses", "my file (1).txt", 1),
    removal(
        "14 empty the bucket",
        "up-new.txt", "never.txt", "signed.txt", "tusbig.bin", "svc.txt", "s3mp.bin", "s3.txt",
        "folder/.emptyFolderPlaceholder", "zero.txt", "my file (1).txt",
        role="service_role",
        gone=(
            "up-new.txt", "never.txt", "signed.txt", "tusbig.bin", "svc.txt", "s3mp.bin", "s3.txt",
            "zero.txt", "my file (1).txt",
        ),
    ),
)  # fmt: skip
"""In the order of the recording. Refusals by policy (11, 12b) and by name rules (13d) never reach a row."""
