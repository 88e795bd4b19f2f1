"""The files of a run: under which name each is stored, and what it is declared to be."""

from __future__ import annotations

import mimetypes
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Storage refuses anything else in an object's name.
_REFUSED = re.compile(r"[^A-Za-z0-9_!.*'() &$@=;:+,?-]")
_DECLARED = {".md": "text/markdown", ".csv": "text/csv", ".txt": "text/plain", ".html": "text/html"}


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way: `name` is its object's name below the owner's folder."""

    path: Path
    name: str
    content_type: str


def uploads(paths: Sequence[Path]) -> list[Upload]:
    """Give every file a name that Storage takes and no other file of the run has: `report.pdf`, `report-2.pdf`."""
    taken: set[str] = set()
    result = []
    for path in paths:
        wanted = Path(_storable(path.name))
        name, number = wanted.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted.stem}-{number}{wanted.suffix}"
        taken.add(name.casefold())
        result.append(Upload(path.resolve(), name, _content_type(path)))
    return result


def _storable(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    # What has no Latin letters at all would be left with its suffix only.
    return _REFUSED.sub("_", plain if Path(plain).stem.strip("._ ") else f"file{Path(name).suffix}").strip() or "file"


def _content_type(path: Path) -> str:
    suffix = path.suffix.lower()
    return _DECLARED.get(suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
