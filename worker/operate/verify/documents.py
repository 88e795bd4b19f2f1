"""The two acceptance documents, known by their bytes, and files that are not them refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of an acceptance document before it is read: facts about the file, nothing of its text."""

    title: str
    name: str
    sha256: str
    size: int
    pages: int


ACCEPTANCE = (
    Known(
        "Simulated Insurance Document", "simulated_insurance_document.pdf",
        "0331f3c86b9de0f8ff372c486bed5572e843c4b6d5f5502e283e1a9483f4635d", 1_782, 1,
    ),
    Known(
        "Scan Classic HMO", "scan_classic_hmo.pdf",
        "8df483896c19e6d1e20d627b19838da4e7d911cd90afad64cf5098138e50afe5", 2_544_678, 232,
    ),
)  # fmt: skip


class StandIn(Exception):
    """A file is not the acceptance document that it may be named after; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Given:
    """An acceptance document on this machine: its facts and its bytes."""

    known: Known
    path: Path
    content: bytes


def identify(paths: Sequence[Path]) -> list[Given]:
    """Read the files and say which acceptance document each is, by SHA-256 alone.

    Raises StandIn for any other file, whatever its name, and for one given twice; nothing is made before.
    """
    found: dict[str, Given] = {}
    for path in paths:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        known = next((known for known in ACCEPTANCE if known.sha256 == sha256), None)
        if known is None:
            raise StandIn(_refusal(path, len(content), sha256))
        if known.size != len(content):  # cannot be, but the size is a fact of its own
            raise StandIn(f"{path.name} has {len(content):,} bytes, {known.title} has {known.size:,}.")
        if sha256 in found:
            raise StandIn(f"{path.name} is {known.title}, which was given already. Give each document once.")
        found[sha256] = Given(known, path, content)
    return sorted(found.values(), key=lambda given: given.known.size)


def _refusal(path: Path, size: int, sha256: str) -> str:
    namesake = next((known for known in ACCEPTANCE if known.name == path.name), None)
    if namesake is not None:
        return (
            f"{path.name} is a stand-in: it has {size:,} bytes and SHA-256 {sha256[:16]}…, {namesake.title} has "
            f"{namesake.size:,} bytes and {namesake.sha256[:16]}…. Give the real file; nothing was uploaded."
        )
    names = " and ".join(f"{known.name} ({known.size:,} bytes)" for known in ACCEPTANCE)
    return (
        f"{path.name} ({size:,} bytes, SHA-256 {sha256[:16]}…) is none of the acceptance documents. Give {names}; "
        "nothing was uploaded."
    )
