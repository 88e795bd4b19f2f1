"""How a remote parser is set up, whichever service it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePosixPath

import httpx

from worker.model import Source
from worker.pipeline import filetype
from worker.pipeline.limits import Limits
from worker.pipeline.parse.answers import Bounds
from worker.pipeline.parse.parser import JsonValue
from worker.pipeline.probe import ask

REQUEST_SECONDS = 60.0
SUBMIT_SECONDS = 300.0
"""A large file on a slow line; what is given up too early is paid for twice."""

ADDRESSES = ("https://api.cloud.llamaindex.ai", "https://api.cloud.eu.llamaindex.ai")
"""LlamaParse's regions, the first where none is named; a key is good in one of them."""
KEY_PATH = "/api/v1/projects"
"""What costs nothing to ask and wants a good key."""

_SUFFIXES = {
    filetype.PDF: ".pdf", filetype.DOCX: ".docx", filetype.PPTX: ".pptx", filetype.XLSX: ".xlsx",
    filetype.HTML: ".html", filetype.MARKDOWN: ".md", filetype.CSV: ".csv", filetype.TSV: ".tsv", filetype.TEXT: ".txt",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Setup:
    """A service's key and options. `base_url` None is the service's own address; the EU has another."""

    api_key: str = field(repr=False)
    limits: Limits
    bounds: Bounds
    base_url: str | None = None
    tier: str = "cost_effective"
    version: str = "latest"
    language: str = "en"

    @property
    def options(self) -> dict[str, JsonValue]:
        """Return what decides the output, as the parse is kept under it."""
        return {
            "tier": self.tier,
            "language": self.language,
            "max_pages": self.bounds.max_pages,
            "failed_share": self.bounds.failed_share,
        }

    @property
    def asked_pages(self) -> int:
        """Return the page limit that the service is told: one more than ours, so that a cut document shows."""
        return self.bounds.max_pages + 1


async def probe(setup: Setup, http: httpx.AsyncClient) -> None:
    """Ask the service which projects our key may see, which costs nothing; raises the errors of errors.py."""
    url = (setup.base_url or ADDRESSES[0]).rstrip("/") + KEY_PATH
    await ask(
        http, url, {"authorization": f"Bearer {setup.api_key}"},
        service="The service that reads the files", settings="LLAMA_CLOUD_API_KEY and LLAMA_CLOUD_BASE_URL",
    )  # fmt: skip


def file_name(source: Source) -> str:
    """Return the name that the service sees: it tells the kind of file, and nothing of the tenant's."""
    return f"document{_SUFFIXES.get(source.mime_type) or PurePosixPath(source.name).suffix}"
