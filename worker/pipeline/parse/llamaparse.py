"""LlamaParse by the package `llama-parse`: it uploads; status and result are asked for here.

The package's own waiting returns empty documents for failed jobs and for a result that answers 500, and takes
PARTIAL_SUCCESS for a failure; its uploads are repeated without a word, also when the answer was lost, which
pays twice. So only `_create_job` is used (private, but the package is at its end and pinned), on a client of
ours that turns the first refusal into an error of errors.py, which the package does not repeat.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from worker.errors import IngestError, Misconfigured
from worker.model import Parsed, Source
from worker.pipeline.parse import answers
from worker.pipeline.parse.parser import JsonValue, Webhook
from worker.pipeline.parse.remote import REQUEST_SECONDS, SUBMIT_SECONDS, Setup, file_name, probe

_DONE = frozenset({"SUCCESS", "PARTIAL_SUCCESS"})
_CANCELLED = frozenset({"CANCELLED", "CANCELED"})


class LlamaParseParser:
    """Reads files with LlamaParse's first interface; one request at most for each call of its methods but `poll`'s two.

    Importing the package takes some 1.6 s and 60 MB: it is done when this is made, never before. Raises
    Misconfigured when the package is not installed.
    """

    name = "llama-parse"
    remote = True

    def __init__(self, setup: Setup) -> None:
        """Import the package and prepare the client; nothing is sent."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # it is at its end, and says so at each import
                from llama_parse import LlamaParse
        except ImportError as exc:
            raise Misconfigured(
                "parser_not_installed",
                "The package llama-parse is not installed. Install the extra sluice[llama-parse]: "
                "pip install --require-hashes -r requirements/llama-parse.txt.",
                detail=str(exc),
            ) from exc
        self._package = LlamaParse
        self._setup = setup
        self.version = setup.version
        self.options: Mapping[str, JsonValue] = setup.options
        self._client = _Client(setup)
        self._asking = self._make(None)

    async def submit(self, source: Source, webhook: Webhook | None = None) -> str:
        """Upload the file once and return the job's id."""
        await self._setup.limits.take(self.name)
        parser = self._make(webhook)
        try:
            with source.path.open("rb") as file:
                async with asyncio.timeout(SUBMIT_SECONDS):
                    reference = await parser._create_job(file, extra_info={"file_name": file_name(source)})
        except TimeoutError as exc:
            raise answers.reply_lost(f"{self.name}: over {SUBMIT_SECONDS:.0f} s") from exc
        except (KeyError, TypeError, ValueError) as exc:
            raise answers.malformed(f"{self.name}: no job id ({type(exc).__name__})") from exc
        if not isinstance(reference, str) or not reference:
            raise answers.malformed(f"{self.name}: no job id")
        return reference

    async def poll(self, reference: str) -> Parsed | None:
        """Ask for the job's status and, when it is done, for its pages."""
        job = await self._get(f"/api/parsing/job/{quote(reference, safe='')}")
        status = str(job.get("status", "")).upper()
        if status in _CANCELLED:
            raise answers.cancelled()
        if status in ("ERROR", "EXPIRED"):
            code = str(job.get("error_code") or ("EXPIRED" if status == "EXPIRED" else ""))
            raise answers.failure(code, str(job.get("error_message") or ""))
        if status not in _DONE:
            return None  # PENDING, and what may be added: the parse ends by its age
        result = await self._get(f"/api/parsing/job/{quote(reference, safe='')}/result/json")
        return await asyncio.to_thread(self._read, result)

    async def probe(self, http: httpx.AsyncClient) -> None:
        """Ask for what costs nothing, on a client of the caller's; raises the errors of errors.py."""
        await probe(self._setup, http)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _make(self, webhook: Webhook | None) -> Any:
        setup = self._setup
        return self._package(
            api_key=setup.api_key,
            custom_client=self._client,
            ignore_errors=False,
            verbose=False,
            show_progress=False,
            max_timeout=int(REQUEST_SECONDS),
            tier=setup.tier,
            version=setup.version,
            language=setup.language,
            max_pages=setup.asked_pages,
            page_error_tolerance=setup.bounds.failed_share,
            **({"base_url": setup.base_url} if setup.base_url else {}),
            **({"webhook_url": webhook.url} if webhook is not None else {}),
        )

    async def _get(self, path: str) -> dict[str, Any]:
        await self._setup.limits.take(self.name)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                response = await self._asking.aclient.get(path)
        except TimeoutError as exc:
            raise answers.unreachable(f"{self.name}: over {REQUEST_SECONDS:.0f} s") from exc
        try:
            answer = await asyncio.to_thread(response.json)
        except ValueError as exc:
            raise answers.malformed(f"{self.name}: no JSON") from exc
        if not isinstance(answer, dict):
            raise answers.malformed(f"{self.name}: no object")
        return answer

    def _read(self, result: dict[str, Any]) -> Parsed:
        about = result.get("job_metadata") or {}
        try:
            pages = [(page.get("page"), _markdown(page)) for page in result.get("pages") or []]
            credits = about.get("job_credits_usage", about.get("credits_used"))
            count = about.get("job_pages")
        except AttributeError as exc:
            raise answers.malformed(f"{self.name}: pages that are none") from exc
        return answers.assemble(
            pages,
            self._setup.bounds,
            count=count if isinstance(count, int) else 0,
            credits=float(credits) if isinstance(credits, int | float) else None,
        )


class _Client(httpx.AsyncClient):
    """A client that tries once: everything but a success is raised as an error of errors.py."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(timeout=REQUEST_SECONDS)
        self._setup = setup

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        name = LlamaParseParser.name
        sending = request.method == "POST"
        try:
            response = await super().send(request, **options)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
            raise answers.unreachable(f"{name}: {type(exc).__name__}") from exc
        except httpx.HTTPError as exc:
            detail = f"{name}: {type(exc).__name__}"
            raise (answers.reply_lost(detail) if sending else answers.unreachable(detail)) from exc
        if response.is_success:
            return response
        refused: IngestError = await answers.refusal(
            self._setup.limits, name, response.status_code, response.headers, polling=not sending, detail=response.text
        )
        raise refused


def _markdown(page: dict[str, Any]) -> str | None:
    """Return a page's Markdown, or its text in the tier that makes none; None when it failed."""
    status = str(page.get("status") or "").upper()
    if "ERR" in status or "FAIL" in status:
        return None
    found = page.get("md") or page.get("text") or ""
    return found if isinstance(found, str) else None
