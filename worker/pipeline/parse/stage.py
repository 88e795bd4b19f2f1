"""Parse: pages of Markdown for these bytes, once for each tenant, parser, version and options."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping

from worker.db.pool import Database
from worker.errors import Rejected, Waiting
from worker.model import Claim, Page, Parsed, ParseId, Source
from worker.pipeline.parse.parser import Parser

_POLL_SECONDS = 0.5
_WAIT_SECONDS = 15.0


async def parse(db: Database, parser: Parser, claim: Claim, source: Source) -> tuple[ParseId, Parsed]:
    """Return the pages of these bytes: parsed here, or by an earlier job of the same tenant.

    Raises Waiting while another job parses them (it wakes this one), and Rejected when they are
    known to be impossible. No transaction is open while the parser works. The type is part of the
    key: the same bytes named .md and .csv are read in two ways.
    """
    row = await db.fetchrow(
        "begin_parse", claim.job_id, claim.number, source.sha256, source.size, source.mime_type,
        parser.name, parser.version, canonical({**parser.options, "mime_type": source.mime_type}),
    )  # fmt: skip
    assert row is not None
    parse_id: ParseId = row["parse_id"]
    match row["outcome"]:
        case "done":
            return parse_id, await _read(db, parse_id)
        case "failed":
            raise Rejected(row["error_code"], row["error_message"])
        case "taken" | "waiting":
            raise Waiting(
                "parse_in_progress",
                "The same file is being read for another document; this one continues when it is done.",
                retry_after=_WAIT_SECONDS,
            )

    try:
        reference = await parser.submit(source)
        while (parsed := await parser.poll(reference)) is None:  # noqa: ASYNC110 - nobody here sets an event
            await asyncio.sleep(_POLL_SECONDS)
    except Rejected as exc:
        await db.fetchval("fail_parse", claim.job_id, claim.number, parse_id, exc.code, exc.public_message)
        raise
    await _store(db, claim, parse_id, parsed)
    return parse_id, parsed


def canonical(options: Mapping[str, object]) -> str:
    """Write options so that equal ones are equal as text: sorted keys, no spaces."""
    return json.dumps(options, sort_keys=True, separators=(",", ":"))


async def _store(db: Database, claim: Claim, parse_id: ParseId, parsed: Parsed) -> None:
    async with db.transaction() as session:
        await session.fetchval("hold_claim", claim.job_id, claim.number)
        await session.copy(
            "pages",
            ("parse_id", "page", "tenant_id", "markdown"),
            ((parse_id, page.number, claim.tenant_id, page.markdown) for page in parsed.pages),
            schema="public",
        )
        await session.fetchval(
            "finish_parse", claim.job_id, claim.number, parse_id,
            len(parsed.pages), parsed.title, parsed.mime_type, list(parsed.notes),
        )  # fmt: skip


async def _read(db: Database, parse_id: ParseId) -> Parsed:
    about = await db.fetchrow("read_parse", parse_id)
    assert about is not None
    pages = await db.fetch("read_pages", parse_id)
    return Parsed(
        pages=tuple(Page(row["page"], row["markdown"]) for row in pages),
        mime_type=about["mime_type"],
        title=about["title"],
        notes=tuple(about["notes"]),
    )
