"""Office files as packages: a zip whose parts are read one by one, each within its limit, as hostile XML."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from worker.errors import Rejected
from worker.pipeline.parse.draft import corrupt, too_expanded

ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, etree.LxmlError)

_MB = 1024 * 1024
_MAX_ENTRIES = 50_000
_MAX_TREE = 96 * _MB
"""A part that is read as a whole: its tree takes about five times as much memory."""
_MAX_STREAM = 1024 * _MB
_MAX_RATIO = 1000
"""Deflate cannot do better than 1032; honest sheets of equal rows reach some hundreds."""
_RATIO_MATTERS = 64 * _MB

_OFFICE = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
R_ID = f"{_OFFICE}id"


class Package:
    """The parts of an office file. Nothing is unpacked but what is asked for.

    An entry gives no more than its directory declares, but `zipfile` unpacks all of it to find out when it
    is read without a count (2.5 GB behind a declared 1,000 bytes): so every read names one.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._zip = zipfile.ZipFile(file)
        entries = self._zip.infolist()
        if len(entries) > _MAX_ENTRIES:
            raise too_expanded(f"{len(entries)} entries")
        for entry in entries:
            if entry.file_size > _RATIO_MATTERS and entry.file_size > _MAX_RATIO * max(entry.compress_size, 1):
                raise too_expanded(f"{entry.compress_size} bytes unpack to {entry.file_size}")
            if entry.flag_bits & 1:
                raise Rejected(
                    "file_encrypted",
                    "The file is protected by a password. Remove the password in its program and upload it again.",
                )
        # Producers disagree on the case of names and on the slash before them.
        self._names = {name.lstrip("/").lower(): name for name in reversed(self._zip.namelist())}
        self._left = _MAX_STREAM

    def has(self, part: str) -> bool:
        """Tell whether there is such a part."""
        return part.lstrip("/").lower() in self._names

    def holds_pictures(self) -> bool:
        """Tell whether there is any media in the package."""
        return any("/media/" in name for name in self._names)

    def tree(self, part: str) -> etree._Element | None:
        """Return a part's root, or None where there is no such part."""
        if not self.has(part):
            return None
        with self._open(part, _MAX_TREE) as stream:
            data = stream.read(self._size(part))
        root = etree.fromstring(data, _parser())
        _refuse_doctype(root)
        return root

    def events(self, part: str, tags: tuple[str, ...]) -> Iterator[etree._Element]:
        """Yield a part's elements of these tags as they end, without keeping what has been read.

        What an element holds is gone once the next one is asked for.
        """
        with self._open(part, _MAX_STREAM) as stream:
            for _, element in etree.iterparse(
                stream, tag=tags, resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
            ):
                _refuse_doctype(element)
                yield element
                element.clear()
                parent = element.getparent()
                while parent is not None and element.getprevious() is not None:
                    del parent[0]

    def targets(self, part: str) -> dict[str, tuple[str, str]]:
        """Return a part's relationships inside the package: id to kind (the type's last word) and part."""
        folder, name = posixpath.split(part)
        root = self.tree(posixpath.join(folder, "_rels", f"{name}.rels"))
        found: dict[str, tuple[str, str]] = {}
        for relation in root if root is not None else ():
            if not isinstance(relation.tag, str) or relation.get("TargetMode") == "External":
                continue
            kind = (relation.get("Type") or "").rsplit("/", 1)[-1]
            target = posixpath.normpath(posixpath.join("/", folder, relation.get("Target") or ""))
            found[relation.get("Id") or ""] = (kind, target.lstrip("/"))
        return found

    def main_part(self, usual: str) -> str:
        """Return the name of the main part, which is nearly always the `usual` one."""
        for kind, target in self.targets("").values():
            if kind == "officeDocument" and self.has(target):
                return target
        return usual

    def title(self) -> str | None:
        """Return the title among the document's properties."""
        root = self.tree("docProps/core.xml")
        found = root.find("{http://purl.org/dc/elements/1.1/}title") if root is not None else None
        return found.text if found is not None else None

    def _size(self, part: str) -> int:
        return self._zip.getinfo(self._names[part.lstrip("/").lower()]).file_size

    def _open(self, part: str, limit: int) -> BinaryIO:
        info = self._zip.getinfo(self._names[part.lstrip("/").lower()])
        # lxml reads in blocks of 32 KB where it reads for itself.
        if info.file_size > min(limit, self._left):
            raise too_expanded(f"{info.file_size} bytes in one part")
        self._left -= info.file_size
        return self._zip.open(info)  # type: ignore[return-value]


def _refuse_doctype(element: etree._Element) -> None:
    # Entities (billion laughs, external files) need one, and no office program writes one.
    if element.getroottree().docinfo.internalDTD is not None:
        raise corrupt("a document type declaration, which office files do not have")


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_comments=True, remove_pis=True
    )
