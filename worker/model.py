"""The nouns that travel through the pipeline; plain values, without behaviour of their own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NewType
from uuid import UUID

JobId = NewType("JobId", int)
TenantId = NewType("TenantId", UUID)
DocumentId = NewType("DocumentId", UUID)
ParseId = NewType("ParseId", int)
ModelId = NewType("ModelId", int)

Stage = Literal["fetch", "parse", "chunk", "embed", "publish"]

PAGE_SEPARATOR = "\n\n"
"""What stands between two pages in a document's text: one blank line."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Ownership of one job for one attempt; `number` is the fencing token and only grows."""

    job_id: JobId
    number: int
    document_id: DocumentId
    tenant_id: TenantId
    generation: int
    attempt: int
    max_attempts: int
    rescues: int


@dataclass(frozen=True, slots=True)
class Source:
    """One generation's bytes in a temporary file, measured while they were streamed.

    `name` is the object's name and is used as a hint for text formats only, never as a path.
    `mime_type` is what the bytes were sniffed to be, not what the client declared.
    """

    path: Path
    name: str
    size: int
    sha256: bytes
    mime_type: str


@dataclass(frozen=True, slots=True)
class Page:
    """One page of Markdown; `number` counts from 1 as the document itself does."""

    number: int
    markdown: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """What parsing gave: all pages in order, blank ones included.

    `mime_type` is None where the parser was not told it: a remote one when it is polled. `credits` is what
    a service says that it charges, in its own unit.
    """

    pages: tuple[Page, ...]
    mime_type: str | None = None
    title: str | None = None
    notes: tuple[str, ...] = field(default=())
    credits: float | None = None

    @property
    def text(self) -> str:
        """The document's text, in which chunks' offsets count code points."""
        return PAGE_SEPARATOR.join(page.markdown for page in self.pages)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A slice of the document's text: `text[char_start:char_end] == content`, always.

    `context` helps to find the chunk but is not in the slice: the headings above it, a repeated
    table header. Pages count from 1 and both ends are included.
    """

    ordinal: int
    page_start: int
    page_end: int
    char_start: int
    char_end: int
    heading_path: tuple[str, ...]
    context: str
    content: str
    token_count: int

    @property
    def embedding_text(self) -> str:
        """What is embedded: the context, where there is one, above the content."""
        return f"{self.context}\n{self.content}" if self.context else self.content

    @property
    def content_sha256(self) -> bytes:
        """The key under which this chunk's vector is kept.

        A NUL stands between the two parts; text in Postgres holds none, so two different pairs
        cannot meet in one key.
        """
        return hashlib.sha256(f"{self.context}\0{self.content}".encode()).digest()


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """The model that an embedder speaks for: `max_tokens` bounds one text, special tokens included."""

    provider: str
    name: str
    dimensions: int
    max_tokens: int
