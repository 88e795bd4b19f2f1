"""What a service's answers mean: refusals become the errors of errors.py, pages become a Parsed.

Both remote parsers share these verdicts, so that a code means the same whichever is configured.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http import HTTPStatus

from worker.errors import IngestError, Misconfigured, Rejected, Transient, Unavailable
from worker.model import Page, Parsed
from worker.pipeline.limits import Limits
from worker.pipeline.parse.draft import corrupt, ranges
from worker.pipeline.parse.parser import Lost
from worker.pipeline.text import clean

_RETRY_AFTER_SECONDS = 30.0
"""For a 429 that does not say how long."""
_MOST_MARKS = 64
"""Combining marks in a row: composing is quadratic in their number, and no script has more than a few."""
_TITLE = re.compile(r"^#\s+(\S.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an answer may hold: pages, bytes of text, and the share of pages that may have failed."""

    max_pages: int
    max_text_bytes: int
    failed_share: float


async def refusal(
    limits: Limits, provider: str, status: int, headers: Mapping[str, str], *, polling: bool, detail: str = ""
) -> IngestError:
    """Return the error to raise for an HTTP status; a 429 keeps every worker from asking meanwhile."""
    detail = f"{provider}: HTTP {status} {detail[:500]}".rstrip()
    match status:
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return Misconfigured(
                "parser_key_refused",
                "The service that reads the files refuses this worker's key. An operator must check "
                "LLAMA_CLOUD_API_KEY, and LLAMA_CLOUD_BASE_URL: a key belongs to one region.",
                detail=detail,
            )
        case HTTPStatus.PAYMENT_REQUIRED:
            return Misconfigured(
                "parser_no_credits",
                "The account at the service that reads the files has no credits left. An operator must add some.",
                detail=detail,
            )
        case HTTPStatus.NOT_FOUND if polling:
            return Lost(
                "parse_job_unknown",
                "The service that reads the files has lost this one. Try it again later.",
                detail=detail,
            )
        case HTTPStatus.TOO_MANY_REQUESTS:
            return await limits.blocked(provider, retry_after(headers))
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED | HTTPStatus.UNPROCESSABLE_ENTITY if not polling:
            return Misconfigured(
                "parser_options_refused",
                "The service that reads the files refuses this worker's settings. An operator must check "
                "LLAMA_CLOUD_BASE_URL and the settings SLUICE_PARSE_….",
                detail=detail,
            )
        case HTTPStatus.BAD_REQUEST | HTTPStatus.REQUEST_ENTITY_TOO_LARGE | HTTPStatus.UNSUPPORTED_MEDIA_TYPE if (
            not polling
        ):
            return Rejected(
                "parser_refused_file",
                "The service that reads the files refuses this one. Save it as PDF, or split it, and upload that.",
                detail=detail,
            )
        case HTTPStatus.INTERNAL_SERVER_ERROR:
            return Transient(
                "parser_failed",
                "The service that reads the files failed on this one. It is tried again by itself.",
                detail=detail,
            )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.REQUEST_TIMEOUT:
        return unreachable(detail)
    return malformed(detail)


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a 429 asks for, half a minute where it does not say; may be anything, also huge."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return _RETRY_AFTER_SECONDS
        seconds = ((at if at.tzinfo else at.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else _RETRY_AFTER_SECONDS


def unreachable(detail: str) -> Unavailable:
    """Return the error for a service that cannot be reached: nothing was sent, or nothing was taken."""
    return Unavailable(
        "parser_unreachable",
        "The service that reads the files does not answer. The file continues by itself when it does.",
        detail=detail,
    )


def reply_lost(detail: str) -> Transient:
    """Return the error for a file that was sent without an answer: charged, because sending again may cost again."""
    return Transient(
        "parser_reply_lost",
        "The service that reads the files did not answer in time. It is tried again by itself.",
        detail=detail,
    )


def malformed(detail: str) -> Transient:
    """Return the error for an answer that is not what the service promises."""
    return Transient(
        "parser_answer_malformed",
        "The service that reads the files answered something else than expected. It is tried again by itself; "
        "if it stays so, contact support.",
        detail=detail,
    )


_FAILURES: tuple[tuple[re.Pattern[str], Rejected], ...] = (
    (
        re.compile("password|encrypt", re.IGNORECASE),
        Rejected(
            "pdf_encrypted",
            "The PDF is protected by a password. Save a copy without the password and upload that.",
        ),
    ),
    (re.compile("broken|corrupt|damaged", re.IGNORECASE), corrupt("the service says so")),
    (
        re.compile("unsupported", re.IGNORECASE),
        Rejected(
            "file_unsupported",
            "The file is not a kind of file that can be read. Save it as PDF or .docx and upload that.",
        ),
    ),
    (
        re.compile("expired|time[d _-]*out", re.IGNORECASE),
        Rejected(
            "parse_expired",
            "The service that reads the files gave this one up because it took too long. "
            "Split it and upload the parts, or try it again later.",
        ),
    ),
    (
        re.compile("no_data|empty", re.IGNORECASE),
        Rejected("parse_empty", "No text was found in the file. If it has some, save it as PDF and upload that."),
    ),
)


def failure(code: str, message: str) -> IngestError:
    """Return the error for a job that the service says has failed; what it does not explain is submitted once more."""
    detail = f"{code}: {message}"[:1000]
    for pattern, known in _FAILURES:
        if pattern.search(code) or pattern.search(message):
            return Rejected(known.code, known.public_message, detail=detail)
    return Lost(
        "parse_failed_remotely",
        "The service that reads the files failed on this one. Try it again later, or save it as PDF and upload that.",
        detail=detail,
    )


def cancelled() -> Rejected:
    """Return the error for a job that somebody cancelled at the service."""
    return Rejected(
        "parse_cancelled",
        "The reading of the file was cancelled at the service that reads the files. Try it again.",
    )


def assemble(
    found: Iterable[tuple[object, str | None]], bounds: Bounds, *, count: int = 0, credits: float | None = None
) -> Parsed:
    """Make a Parsed of (page number, Markdown) pairs as a service numbers them; None stands for a page that failed.

    Pages that are missing below the highest number, or below `count`, have failed too; they are kept as blank
    pages and noted, so that numbers stay true. Raises Rejected when too many failed or all are blank, and
    Transient for numbers that cannot be. It may take seconds: not for the loop that renews leases.
    """
    texts: dict[int, str | None] = {}
    size = 0
    for number, markdown in found:
        if not isinstance(number, int) or isinstance(number, bool) or number < 1 or number in texts:
            raise malformed(f"page number {number!r:.40}")
        texts[number] = None if markdown is None else _cleaned(markdown)
        size += len((texts[number] or "").encode())
        if size > bounds.max_text_bytes:
            raise Rejected(
                "text_too_large",
                "The document holds more text than one may have. Split it and upload the parts.",
            )
    last = max([count, *texts])
    if last > bounds.max_pages:
        raise Rejected(
            "too_many_pages",
            f"The document has more than the {bounds.max_pages} pages that one may have. "
            "Split it and upload the parts.",
            detail=f"{last} pages",
        )
    failed = [number for number in range(1, last + 1) if texts.get(number) is None]
    if last and (len(failed) == last or len(failed) > bounds.failed_share * last):
        raise Rejected(
            "parse_pages_failed",
            f"{len(failed)} of the {last} pages could not be read. Save the file as PDF again, or split it, "
            "and upload that.",
            detail=f"pages {ranges(failed)}",
        )
    pages = tuple(Page(number, texts.get(number) or "") for number in range(1, last + 1))
    if not any(page.markdown and not page.markdown.isspace() for page in pages):
        raise Rejected("parse_empty", "No text was found in the file. If it has some, save it as PDF and upload that.")
    title = next((match for page in pages if (match := _TITLE.search(page.markdown))), None)
    return Parsed(
        pages,
        title=" ".join(title[1].split())[:300] if title else None,
        notes=(f"Pages that could not be read: {ranges(failed)}",) if failed else (),
        credits=credits,
    )


def _cleaned(text: str) -> str:
    if not text.isascii():
        text = _marks().sub(r"\1", text)
    return clean(text).strip("\n")


@cache
def _marks() -> re.Pattern[str]:
    marks = "".join(chr(code) for code in range(0x300, sys.maxunicode + 1) if unicodedata.combining(chr(code)))
    return re.compile(f"([{re.escape(marks)}]{{{_MOST_MARKS}}})[{re.escape(marks)}]+")
