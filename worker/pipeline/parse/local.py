"""The local parser: no key, no network, one sandboxed process a document."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import uuid
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from worker.errors import IngestError, Misconfigured, Rejected, Transient
from worker.model import Page, Parsed, Source
from worker.pipeline import filetype
from worker.pipeline.parse import sandbox
from worker.pipeline.parse.draft import Draft, corrupt
from worker.pipeline.parse.formats import text as text_format
from worker.pipeline.parse.parser import JsonValue, Webhook
from worker.pipeline.parse.sandbox import Limits, Outcome
from worker.pipeline.text import decode, is_safe, is_simple

_FORMATS = "worker.pipeline.parse.formats"
MODULES: dict[str, str] = {
    filetype.PDF: f"{_FORMATS}.pdf",
    filetype.DOCX: f"{_FORMATS}.docx",
    filetype.PPTX: f"{_FORMATS}.pptx",
    filetype.XLSX: f"{_FORMATS}.xlsx",
    filetype.HTML: f"{_FORMATS}.html",
    filetype.MARKDOWN: f"{_FORMATS}.text",
    filetype.TEXT: f"{_FORMATS}.text",
    filetype.CSV: f"{_FORMATS}.table",
    filetype.TSV: f"{_FORMATS}.table",
}
"""Which module reads which type; imported in the child only."""

_SMALL_TEXT_BYTES = 256 * 1024
"""Text up to this size that is cleaned in linear time is read here: it takes under 1 ms, and a child 50 to start."""

_MAX_NOTES = 50
_MAX_TITLE = 300


def is_small_text(source: Source) -> bool:
    """Say whether the file is over in a moment, unless its letters need the child."""
    return source.mime_type in (filetype.MARKDOWN, filetype.TEXT) and source.size <= _SMALL_TEXT_BYTES


class LocalParser:
    """Reads PDF, DOCX, PPTX, XLSX, HTML, Markdown, text and CSV, each document but small text in a child of its own.

    `poll` does the work and returns the pages at once; how many run side by side is the caller's to
    bound. Cancelling it kills the child. A reference is of use to the object that gave it out, once.
    """

    name = "local"
    version = "1"
    remote = False
    options: Mapping[str, JsonValue]
    """The limits: a file that was beyond them is read again once they are raised."""

    def __init__(
        self,
        *,
        max_pages: int,
        max_text_bytes: int,
        memory_bytes: int,
        cpu_seconds: int,
        seconds: float,
        directory: Path,
        allow_unsandboxed: bool = False,
    ) -> None:
        """Bound what one document may cost; children start in an empty folder made in `directory`."""
        self._task = {"max_pages": max_pages, "max_text_bytes": max_text_bytes}
        self.options = {**self._task, "memory_bytes": memory_bytes, "cpu_seconds": cpu_seconds, "seconds": seconds}
        self._allow_unsandboxed = allow_unsandboxed
        # JSON doubles quotes, backslashes and line ends at worst; an empty page costs four bytes.
        self._limits = Limits(memory_bytes, cpu_seconds, seconds, 2 * max_text_bytes + 4 * max_pages + 65536)
        self._sources: dict[str, Source] = {}
        self._directory = directory / "children"
        self._directory.mkdir(mode=0o700)

    async def submit(self, source: Source, webhook: Webhook | None = None) -> str:
        """Note the source under a fresh reference; nothing is read yet, and the file must stay until the poll."""
        reference = uuid.uuid4().hex
        self._sources[reference] = source
        return reference

    async def poll(self, reference: str) -> Parsed:
        """Read the document and return its pages; raises Rejected, Transient or Misconfigured."""
        source = self._sources.pop(reference, None)
        if source is None:
            raise Transient(
                "parse_lost",
                "Reading the file was interrupted. It is tried again by itself; nothing needs to be done.",
            )
        module = MODULES.get(source.mime_type)
        if module is None:
            raise Rejected(
                "file_unsupported",
                "The file is not a kind of file that can be read. Save it as PDF or .docx and upload that.",
                detail=source.mime_type,
            )
        if is_small_text(source):
            data = source.path.read_bytes()
            if is_simple(decode(data)):
                return self._read_text(data, source.mime_type)
        command = sandbox.command(
            module,
            self._limits,
            allow_unsandboxed=self._allow_unsandboxed,
            mime_type=source.mime_type,
            **self._task,
        )
        file = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            outcome = await sandbox.run(command, file, self._directory, self._limits)
        finally:
            os.close(file)
        if outcome.ended_by != "itself" or outcome.returncode != 0:
            raise self._explain(outcome)
        # Tens of megabytes take a second: not on the loop that renews leases.
        return await asyncio.to_thread(_read_answer, outcome, source.mime_type)

    async def aclose(self) -> None:
        """Forget what was submitted."""
        self._sources.clear()

    def _read_text(self, data: bytes, mime_type: str) -> Parsed:
        draft = Draft(mime_type, **self._task)
        text_format.parse(BytesIO(data), draft)
        draft.note_blank_pages()
        pages = tuple(Page(number, page) for number, page in enumerate(draft.pages, 1))
        return Parsed(pages, mime_type, draft.title, tuple(draft.notes))

    def _explain(self, outcome: Outcome) -> IngestError:
        if outcome.ended_by == "output":
            return Rejected(
                "text_too_large", "The document holds more text than one may have. Split it and upload the parts."
            )
        if outcome.ended_by == "deadline" or outcome.returncode == -signal.SIGXCPU:
            return Rejected(
                "parse_timeout",
                "Reading the file took longer than one document may. "
                "Split it, or save it again from its program, and upload that.",
                detail="wall clock" if outcome.ended_by == "deadline" else "CPU time",
            )
        if outcome.returncode == -signal.SIGABRT and not _corrupted_heap(outcome.errors):
            return _out_of_memory(outcome.errors)  # how PDFium and the C++ library answer a refused allocation
        return _crashed(f"returned {outcome.returncode}; {outcome.errors[-1000:]}")


def _read_answer(outcome: Outcome, mime_type: str) -> Parsed:
    """Believe nothing: the child may have been taken over by what it read."""
    try:
        answer: Any = json.loads(outcome.output)
        if "rejected" in answer:
            code, message, detail = answer["rejected"]
            raise Rejected(_short(code), _short(message), detail=_short(detail or ""))
        if answer.get("failed") == "memory":
            raise _out_of_memory("MemoryError")
        if "failed" in answer:
            raise _crashed(_short(answer["failed"]))
        if answer.get("mode") == "none":
            raise Misconfigured(
                "sandbox_unavailable",
                "This worker cannot read files safely and does not read them. An operator must let it make user "
                "namespaces or use seccomp, or set SLUICE_ALLOW_UNSANDBOXED=true and accept the risk.",
            )
        pages = tuple(Page(number, _safe(page)) for number, page in enumerate(answer["pages"], 1))
        title = answer["title"] if answer["title"] is None else _safe(answer["title"])[:_MAX_TITLE]
        notes = tuple(_short(note) for note in answer["notes"][:_MAX_NOTES])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise _crashed(f"its answer was not understood: {type(exc).__name__}") from exc
    if not pages:
        raise corrupt("no pages")
    return Parsed(pages=pages, mime_type=mime_type, title=title, notes=notes)


def _safe(text: str) -> str:
    if not isinstance(text, str) or not is_safe(text):
        raise ValueError("text that was not cleaned")
    return text


def _short(text: str) -> str:
    return _safe(text)[:1000]


def _corrupted_heap(errors: str) -> bool:
    return any(word in errors for word in ("corrupt", "double free", "invalid pointer", "invalid size", "smashing"))


def _out_of_memory(detail: str) -> Rejected:
    return Rejected(
        "parse_out_of_memory",
        "The file unpacks to more than the memory that one document may use. "
        "Split it, or save it again from its program, and upload that.",
        detail=detail[-1000:],
    )


def _crashed(detail: str) -> Transient:
    return Transient(
        "parser_crashed",
        "The program that reads the file failed on it. It is tried again by itself; if it fails again, "
        "open the file in its program, save it as PDF and upload that.",
        detail=detail,
    )
