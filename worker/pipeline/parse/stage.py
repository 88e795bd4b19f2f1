"""Parse: pages of Markdown for these bytes, once for each tenant, parser, version and options."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from loguru import logger

from worker import metrics
from worker.db.pool import Database
from worker.errors import IngestError, Rejected, StaleClaim, Transient, Waiting
from worker.model import Claim, ModelId, Page, Parsed, ParseId, Source
from worker.pipeline import filetype
from worker.pipeline.parse.choose import Choice, Parsers, read
from worker.pipeline.parse.fidelity import LOW, fidelity
from worker.pipeline.parse.parser import JsonValue, Parser
from worker.telemetry import about

FIRST_POLL = timedelta(seconds=5)
_POLL_SECONDS = 0.5
_WAIT_SECONDS = 15.0
_SLEEP_SECONDS = 3600.0
"""How long a job sleeps while a service reads its file: the end of the parse wakes it sooner."""
_NOTE_TRIES = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """The pages, and what is to be told of them in counts; `parse_id` is None while nobody keeps them."""

    parsed: Parsed
    parse_id: ParseId | None = None
    detail: Mapping[str, JsonValue] = field(default_factory=dict)


async def skim(choice: Choice, source: Source) -> Reading | None:
    """Read a short text here and now, kept by nobody; None where it is refused, which `parse` then writes down."""
    try:
        return Reading(await read(choice.parser, source))
    except Rejected:
        return None


async def store_and_begin_embed(
    db: Database, choice: Choice, claim: Claim, source: Source, parsed: Parsed,
    *, model_id: ModelId, progress: float, left: str, keys: Sequence[bytes],
) -> tuple[ParseId, set[bytes]]:  # fmt: skip
    """Keep what `skim` read and enter the stage embed in one call; return the parse and the keys without a vector.

    Raises Waiting, Rejected, StaleClaim and Superseded as `parse` does.
    """
    row = await db.fetchrow(
        "store_parse_and_begin_embed", *_asked(choice.parser, claim, source), claim.tenant_id,
        [page.number for page in parsed.pages], [page.markdown for page in parsed.pages],
        parsed.title, list(parsed.notes), progress, left, model_id, keys,
    )  # fmt: skip
    assert row is not None
    if row["outcome"] == "done":
        return row["parse_id"], set(row["missing"])
    raise _taken() if row["outcome"] == "taken" else Rejected(row["error_code"], row["error_message"])


async def parse(db: Database, parsers: Parsers, choice: Choice, claim: Claim, source: Source) -> Reading:
    """Return the pages of these bytes: parsed here, or by an earlier job of the same tenant.

    Raises Waiting while a service or another job parses them (the end of that wakes this one), and
    Rejected when they are known to be impossible. No transaction is open while a parser works. The type
    is part of the key: the same bytes named .md and .csv are read in two ways.
    """
    parser = choice.parser
    row = await db.fetchrow("begin_parse", *_asked(parser, claim, source))
    assert row is not None
    parse_id: ParseId = row["parse_id"]
    match row["outcome"]:
        case "done":
            return await _known(db, parsers, choice, claim, source, parse_id)
        case "failed":
            raise Rejected(row["error_code"], row["error_message"])
        case "taken":
            raise _taken()
        case "waiting":
            raise _asleep()

    try:
        if parser.remote:
            await _send_away(db, parsers, parser, claim, source, parse_id)
            raise _asleep()
        if choice.layer is not None:
            parsed: Parsed | None = choice.layer
        else:
            reference = await parser.submit(source)
            while (parsed := await parser.poll(reference)) is None:  # noqa: ASYNC110 - nobody here sets an event
                await asyncio.sleep(_POLL_SECONDS)
    except Rejected as exc:
        await db.fetchval("fail_parse", claim.job_id, claim.number, parse_id, exc.code, exc.public_message)
        raise
    assert parsed is not None
    await _store(db, claim, parse_id, parsed)
    return Reading(parsed, parse_id)


def _asked(parser: Parser, claim: Claim, source: Source) -> tuple[object, ...]:
    options = canonical({**parser.options, "mime_type": source.mime_type})
    return (
        claim.job_id, claim.number, source.sha256, source.size, source.mime_type, parser.name, parser.version, options
    )  # fmt: skip


def canonical(options: Mapping[str, object]) -> str:
    """Write options so that equal ones are equal as text: sorted keys, no spaces."""
    return json.dumps(options, sort_keys=True, separators=(",", ":"))


async def _send_away(
    db: Database, parsers: Parsers, parser: Parser, claim: Claim, source: Source, parse_id: ParseId
) -> None:
    """Submit, and store the reference before anybody polls: from then on the parse is nobody's and everybody's."""
    if parsers.allow is not None:
        await parsers.allow(claim.tenant_id)
    webhook = await parsers.webhook(claim, parse_id) if parsers.webhook is not None else None
    with metrics.asking(parser.name):
        reference = await parser.submit(source, webhook)
    for left in reversed(range(_NOTE_TRIES)):
        try:
            await db.fetchval("note_submitted", claim.job_id, claim.number, parse_id, reference, FIRST_POLL)
            break
        except Transient:
            if not left:
                raise
            await asyncio.sleep(0.2 * (_NOTE_TRIES - left))  # it is paid for: a moment's outage must not lose it
        except StaleClaim:
            logger.bind(**about(claim), code="parse_submitted_twice").warning("another job took the parse over")
            raise
    logger.bind(**about(claim), parser=parser.name, reference=reference).info("parse sent away")


def _taken() -> Waiting:
    return Waiting(
        "parse_in_progress",
        "The same file is being read for another document; this one continues when it is done.",
        retry_after=_WAIT_SECONDS,
    )


def _asleep() -> Waiting:
    return Waiting(
        "parse_remote",
        "The file is being read by the service that reads files; it continues when that is done.",
        retry_after=_SLEEP_SECONDS,
    )


async def _store(db: Database, claim: Claim, parse_id: ParseId, parsed: Parsed) -> None:
    await db.fetchval(
        "store_parse", claim.job_id, claim.number, parse_id, claim.tenant_id,
        [page.number for page in parsed.pages], [page.markdown for page in parsed.pages],
        parsed.title, parsed.mime_type, list(parsed.notes),
    )  # fmt: skip


async def _known(
    db: Database, parsers: Parsers, choice: Choice, claim: Claim, source: Source, parse_id: ParseId
) -> Reading:
    """Read the pages that are there; what a service returned is compared with the file's own text, once."""
    about_it = await db.fetchrow("read_parse", parse_id)
    assert about_it is not None
    pages = await db.fetch("read_pages", parse_id)
    parsed = Parsed(
        pages=tuple(Page(row["page"], row["markdown"]) for row in pages),
        mime_type=about_it["mime_type"],
        title=about_it["title"],
        notes=tuple(about_it["notes"]),
    )
    compared = choice.parser.remote and source.mime_type == filetype.PDF and parsers.local is not None
    if not compared or about_it["fidelity"] is not None:
        return Reading(parsed, parse_id)
    assert parsers.local is not None
    layer = choice.layer
    if layer is None:
        try:
            layer = await read(parsers.local, source)
        except IngestError:
            return Reading(parsed, parse_id)  # a scan has no text of its own to compare with
    share = await asyncio.to_thread(fidelity, layer, parsed)
    if share is None:
        return Reading(parsed, parse_id)
    note = None
    if share < LOW:
        note = f"Only {share:.0%} of the file's own words and numbers came back: it may have been summarised."
        logger.bind(**about(claim), code="parse_fidelity_low", fidelity=round(share, 3)).warning("parse fidelity low")
        parsed = replace(parsed, notes=(*parsed.notes, note))
    await db.fetchval("note_fidelity", parse_id, share, note)
    return Reading(parsed, parse_id, {"fidelity": round(share, 3), **({"code": "parse_fidelity_low"} if note else {})})
