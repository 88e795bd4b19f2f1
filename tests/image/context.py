"""What Docker would send to a build: the files of a folder that its .dockerignore lets through."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path


class Rules:
    """The lines of a .dockerignore: the last one that names a path, or a folder above it, decides."""

    def __init__(self, text: str) -> None:
        lines = [line.strip() for line in text.splitlines()]
        self._rules = [
            (line.startswith("!"), line.lstrip("!").strip("/")) for line in lines if line and not line.startswith("#")
        ]
        self._compiled: Sequence[tuple[bool, re.Pattern[str]]] = [
            (keep, re.compile(_pattern(pattern))) for keep, pattern in self._rules
        ]

    def keep(self, path: str) -> bool:
        """Say whether a file's path, relative and with slashes, is sent."""
        parts = path.split("/")
        paths = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
        kept = True
        for keep, pattern in self._compiled:
            if any(pattern.fullmatch(one) for one in paths):
                kept = keep
        return kept

    def may_hold(self, folder: str) -> bool:
        """Say whether anything below a folder can be sent: not worth looking where no line lets something in."""
        return self.keep(folder) or any(
            keep and (pattern.startswith((f"{folder}/", "**")) or folder.startswith(f"{pattern.split('/')[0]}/"))
            for keep, pattern in self._rules
        )


def sent(folder: Path) -> list[str]:
    """Return the relative paths of the files that a build in `folder` can see, sorted."""
    rules = Rules((folder / ".dockerignore").read_text())
    found = []
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder).as_posix()
        prefix = "" if here == "." else f"{here}/"
        folders[:] = [name for name in folders if rules.may_hold(prefix + name)]
        found += [prefix + name for name in files if rules.keep(prefix + name)]
    return sorted(found)


def _pattern(glob: str) -> str:
    """Turn a pattern into a regular expression: * stays within a folder, ** also stands for none."""
    out = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?)", glob):
        out += {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return out
