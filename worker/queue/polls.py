"""Asks services for the parses that were sent away; all workers share the rows, whoever sent them.

due row ──take_polls──► ours for minutes ──► ask ──► pages      finish, and wake who waits
                                                 ├─────► pending    again after a quarter of its age
                                                 ├─────► lost       to be sent once more
                                                 ├─────► rejected   failed, and wake who waits
                                                 └─────► any other  again, later
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from loguru import logger

from worker import metrics
from worker.db.pool import Database
from worker.errors import IngestError, Misconfigured, Rejected, Throttled
from worker.model import DocumentId, JobId, Parsed, ParseId, TenantId
from worker.pipeline.parse.parser import Lost, Parser

_LEASE = timedelta(seconds=150)
"""Longer than the two requests of a poll may take; then any worker asks again."""
_AT_ONCE = 4
"""Answers are megabytes, and two requests a parse every 5 s at 4 at once stay far below the vendor's limit."""
_SOONEST_SECONDS = 5.0
_LATEST_SECONDS = 60.0
_MISCONFIGURED_SECONDS = 300.0
_LONGEST_BLOCK_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Sent:
    """A parse that was sent away, and the claim, job and document that sent it."""

    parse_id: ParseId
    tenant_id: TenantId
    job_id: JobId
    claim: int
    document_id: DocumentId
    reference: str
    waited: float


Spent = Callable[[Sent, Parsed], Awaitable[None]]
"""Told of pages that a service has charged; may be told twice of one reference, and should raise nothing."""


@dataclass(frozen=True, slots=True)
class Polls:
    """Polls one remote parser's rows. No transaction is open and no row is locked while the service is asked."""

    db: Database
    parser: Parser
    spent: Spent | None = None
    _alerts: set[str] = field(default_factory=set, repr=False)

    async def take_turn(self) -> int:
        """Ask for everything that is due, a few at a time; return 0, since each ending is logged by itself."""
        full = True
        while full:
            rows = await self.db.fetch("take_polls", self.parser.name, _AT_ONCE, _LEASE)
            async with asyncio.TaskGroup() as tasks:
                for row in rows:
                    tasks.create_task(self._poll(_sent(row)))
            full = len(rows) == _AT_ONCE
        return 0

    async def _poll(self, sent: Sent) -> None:
        log = logger.bind(parse=sent.parse_id, tenant=str(sent.tenant_id), reference=sent.reference)
        ids = (sent.parse_id, sent.reference)
        try:
            try:
                with metrics.asking(self.parser.name):
                    parsed = await self.parser.poll(sent.reference)
            except Rejected as exc:
                log.bind(code=exc.code, detail=exc.detail).warning("parse failed")
                await self.db.fetchval("fail_remote_parse", *ids, exc.code, exc.public_message)
            except Lost as exc:
                verdict = await self.db.fetchval("resubmit_parse", *ids, exc.code, exc.public_message)
                log.bind(code=exc.code, detail=exc.detail, verdict=verdict).warning("parse lost")
            except IngestError as exc:
                await self._later(sent, exc)
                log.bind(code=exc.code, detail=exc.detail).warning("poll failed")
            else:
                await self._works_again()
                if parsed is None:
                    await self.db.fetchval("poll_again", *ids, _pause(sent))
                else:
                    await self._finish(sent, parsed)
                    log.bind(pages=len(parsed.pages), seconds=round(sent.waited, 1)).info("parse came back")
        except IngestError as exc:  # the database: the row is due again when its lease ends
            log.bind(code=exc.code, detail=exc.detail).warning("poll not written")
        except Exception as exc:  # noqa: BLE001 - one answer must not end the polls of all others
            log.opt(exception=exc).error("internal error")

    async def _later(self, sent: Sent, error: IngestError) -> None:
        match error:
            case Throttled():
                pause = timedelta(seconds=min(max(_SOONEST_SECONDS, error.retry_after), _LONGEST_BLOCK_SECONDS))
            case Misconfigured():
                pause = timedelta(seconds=_MISCONFIGURED_SECONDS)
                self._alerts.add(error.code)
                await self.db.fetchval("raise_alert", "misconfigured", error.code, error.public_message)
            case _:
                pause = _pause(sent)
        await self.db.fetchval("poll_again", sent.parse_id, sent.reference, pause)

    async def _works_again(self) -> None:
        while self._alerts:
            with contextlib.suppress(IngestError):
                await self.db.fetchval("resolve_alert", "misconfigured", self._alerts.pop())

    async def _finish(self, sent: Sent, parsed: Parsed) -> None:
        if self.spent is not None:
            await self.spent(sent, parsed)
        async with self.db.transaction() as session:
            # Of two that have the same answer, one copies; none does when the parse is sent anew or swept.
            if not await session.fetchval("hold_remote_parse", sent.parse_id, sent.reference):
                return
            await session.copy(
                "pages",
                ("parse_id", "page", "tenant_id", "markdown"),
                ((sent.parse_id, page.number, sent.tenant_id, page.markdown) for page in parsed.pages),
                schema="public",
            )
            await session.fetchval(
                "finish_remote_parse", sent.parse_id, sent.reference,
                len(parsed.pages), parsed.title, list(parsed.notes),
            )  # fmt: skip


def _sent(row: Any) -> Sent:
    return Sent(
        row["parse_id"], row["tenant_id"], row["job_id"], row["claim"], row["document_id"],
        row["remote_ref"], row["waited"].total_seconds(),
    )  # fmt: skip


def _pause(sent: Sent) -> timedelta:
    return timedelta(seconds=min(max(_SOONEST_SECONDS, sent.waited / 4), _LATEST_SECONDS))
