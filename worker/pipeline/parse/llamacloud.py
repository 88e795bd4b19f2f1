"""LlamaParse by the package `llama-cloud` 2: its second interface, create and get only.

The package's own waiting does not raise when a job fails, and its retries come back after 0.4 s where a 429 asks
for two minutes: retries are off, and the queue decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

from worker.errors import Misconfigured
from worker.model import Parsed, Source
from worker.pipeline.parse import answers
from worker.pipeline.parse.parser import JsonValue, Webhook
from worker.pipeline.parse.remote import REQUEST_SECONDS, SUBMIT_SECONDS, Setup, file_name, probe

_EVENTS = ("parse.success", "parse.error", "parse.partial_success", "parse.cancelled")


class LlamaCloudParser:
    """Reads files with LlamaParse's second interface; one request at most for each call.

    Importing the package takes some 0.4 s: it is done when this is made. Raises Misconfigured when it is not
    installed, or is the old one that llama-parse brings.
    """

    name = "llama-cloud"
    remote = True

    def __init__(self, setup: Setup) -> None:
        """Import the package and prepare the client; nothing is sent."""
        try:
            import llama_cloud
            from llama_cloud import AsyncLlamaCloud
        except ImportError as exc:
            raise Misconfigured(
                "parser_not_installed",
                "The package llama-cloud 2 is not installed. Install the extra sluice[llama-cloud], in an environment "
                "without llama-parse: pip install --require-hashes -r requirements/llama-cloud.txt.",
                detail=str(exc),
            ) from exc
        self._errors = llama_cloud
        self._setup = setup
        self.version = setup.version
        self.options: Mapping[str, JsonValue] = setup.options
        self._client = AsyncLlamaCloud(
            api_key=setup.api_key, max_retries=0, timeout=REQUEST_SECONDS,
            **({"base_url": setup.base_url} if setup.base_url else {}),
        )  # fmt: skip
        # The tier without a model writes no Markdown.
        self._wanted = "text" if setup.tier == "fast" else "markdown"

    async def submit(self, source: Source, webhook: Webhook | None = None) -> str:
        """Upload the file once and return the job's id."""
        setup = self._setup
        await setup.limits.take(self.name)
        async with self._translated(polling=False, seconds=SUBMIT_SECONDS):
            with source.path.open("rb") as file:
                job = await self._client.parsing.create(
                    tier=setup.tier,
                    version=setup.version,
                    upload_file=(file_name(source), file, source.mime_type),
                    page_ranges={"max_pages": setup.asked_pages},
                    processing_options={"ocr_parameters": {"languages": [setup.language]}},
                    processing_control={
                        "job_failure_conditions": {"allowed_page_failure_ratio": setup.bounds.failed_share}
                    },
                    **({"webhook_configurations": [_call(webhook)]} if webhook is not None else {}),
                )
        reference = getattr(job, "id", None)  # the package passes on what is no job at all
        if not isinstance(reference, str) or not reference:
            raise answers.malformed(f"{self.name}: no job id")
        return reference

    async def poll(self, reference: str) -> Parsed | None:
        """Ask for the job and, when it is done, for its pages in the same request."""
        await self._setup.limits.take(self.name)
        async with self._translated(polling=True, seconds=REQUEST_SECONDS):
            answer = await self._client.parsing.get(reference, expand=[self._wanted, "usage"])
        job = getattr(answer, "job", None)
        if job is None:
            raise answers.malformed(f"{self.name}: no job")
        status = str(getattr(job, "status", "")).upper()
        if status in ("CANCELLED", "CANCELED"):
            raise answers.cancelled()
        if status in ("FAILED", "ERROR", "EXPIRED"):
            raise answers.failure(status if status == "EXPIRED" else "", str(getattr(job, "error_message", None) or ""))
        if status not in ("COMPLETED", "SUCCESS", "PARTIAL_SUCCESS"):
            return None  # PENDING, RUNNING, and what may be added: the parse ends by its age
        return await asyncio.to_thread(self._read, answer)

    async def probe(self, http: httpx.AsyncClient) -> None:
        """Ask for what costs nothing, on a client of the caller's; raises the errors of errors.py."""
        await probe(self._setup, http)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, answer: Any) -> Parsed:
        content = getattr(answer, self._wanted)
        try:
            pages = [(page.page_number, self._page(page)) for page in (content.pages or [] if content else [])]
            usage = getattr(answer.job, "usage", None)
            credits = getattr(usage, "credits", None)
        except AttributeError as exc:
            raise answers.malformed(f"{self.name}: pages that are none") from exc
        return answers.assemble(
            pages, self._setup.bounds, credits=float(credits) if isinstance(credits, int | float) else None
        )

    def _page(self, page: Any) -> str | None:
        """Return a page's text, None when it failed; answers are not checked by the package."""
        found = getattr(page, self._wanted, None) if getattr(page, "success", True) is True else None
        return found if isinstance(found, str) else None

    @contextlib.asynccontextmanager
    async def _translated(self, *, polling: bool, seconds: float) -> AsyncIterator[None]:
        """Bound a request, and turn what the package raises into the tree of errors.py."""
        errors = self._errors
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as exc:
            raise self._unanswered(polling, f"over {seconds:.0f} s") from exc
        except errors.APIStatusError as exc:
            raise await answers.refusal(
                self._setup.limits, self.name, exc.status_code, exc.response.headers, polling=polling,
                detail=exc.response.text,
            ) from exc  # fmt: skip
        except errors.APIConnectionError as exc:
            cause = type(exc.__cause__).__name__
            if cause in ("ConnectError", "ConnectTimeout", "PoolTimeout"):
                raise answers.unreachable(f"{self.name}: {cause}") from exc
            raise self._unanswered(polling, cause) from exc
        except (errors.APIError, ValueError, TypeError) as exc:
            raise answers.malformed(f"{self.name}: {type(exc).__name__}") from exc

    def _unanswered(self, polling: bool, why: str) -> Exception:
        return (answers.unreachable if polling else answers.reply_lost)(f"{self.name}: {why}")


def _call(webhook: Webhook) -> dict[str, Any]:
    return {
        "webhook_url": webhook.url,
        "webhook_events": list(_EVENTS),
        "webhook_output_format": "json",
        **({"webhook_signing_secret": webhook.signing_secret} if webhook.signing_secret else {}),
    }
