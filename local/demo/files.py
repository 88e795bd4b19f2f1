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
    """A file on its way: `path` links to it, `name` is its object's name below the owner's folder."""

    path: Path
    name: str
    content_type: str


def uploads(paths: Sequence[Path], links: Path) -> list[Upload]:
    """Give every file a name that Storage takes and no other file of the run has: `report.pdf`, `report-2.pdf`.

    The new directory `links` then holds a link to each: it is what the client may read, since a list of paths
    cannot be given to Deno where one of them has a comma.
    """
    links.mkdir(parents=True)
    taken: set[str] = set()
    result = []
    for index, path in enumerate(paths):
        wanted = Path(_storable(path.name))
        name, number = wanted.name, 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted.stem}-{number}{wanted.suffix}"
        taken.add(name.casefold())
        link = links / str(index)
        link.symlink_to(path.resolve())
        result.append(Upload(link, name, _content_type(path)))
    return result


def _storable(name: str) -> str:
    # What has no Latin letters at all would be left with its suffix only.
    stem, suffix = (_REFUSED.sub("_", _latin(part)) for part in (Path(name).stem, Path(name).suffix))
    return (stem.strip(" .") or "file") + suffix.strip()


def _latin(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def _content_type(path: Path) -> str:
    suffix = path.suffix.lower()
    return _DECLARED.get(suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
