"""The ledger: what was spent with providers, by document, and whether a tenant may spend more."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal
from uuid import uuid4

from loguru import logger

from worker.db.pool import Database
from worker.errors import IngestError, OverBudget
from worker.model import DocumentId, JobId, TenantId

_PAUSES_SECONDS = (0.1, 0.4, 1.5)
_WAIT_SECONDS = 5.0
_BUDGET_SECONDS = 5.0
_TENANTS_REMEMBERED = 10_000
_MOST_OWED = 10_000
_CLOSING_SECONDS = 10.0
_MAY_COME_BACK = frozenset({"database_unreachable", "database_busy"})


@dataclass(frozen=True, slots=True)
class Spent:
    """What one document has of one paid request; `claim` is the fencing token's number, a document that is gone None.

    The parts of one request add up to it, `requests` too: one of them says 1 and the others 0. Where all say 0 the
    ledger counts it for the first.
    """

    job_id: JobId
    claim: int
    document_id: DocumentId | None
    tenant_id: TenantId
    provider: str
    model: str
    pages: int = 0
    tokens: int = 0
    requests: int = 0

    @property
    def kind(self) -> Literal["parse", "embed"]:
        """What was paid for: pages are read, everything else is embedded."""
        return "parse" if self.pages else "embed"


@dataclass(frozen=True, slots=True)
class _Entry:
    request: str
    shares: tuple[Spent, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a budget said; `resets` is null while there is room, both times are the monotonic clock's."""

    until: float
    resets: float | None = None
    subject: str = ""


class Ledger:
    """Writes usage down and keeps to budgets; one a worker, `aclose` it before its database.

    The money is computed in the database. No transaction may be open in any call.
    """

    def __init__(
        self,
        db: Database,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._db = db
        self._clock = clock
        self._sleep = sleep
        self._owed: deque[_Entry] = deque()
        self._writing = asyncio.Lock()
        self._asking = asyncio.Lock()
        self._answers: dict[TenantId, _Answer] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def spent(self, shares: Sequence[Spent], *, request: str | None = None) -> None:
        """Write one paid request down, also when the caller is cancelled meanwhile; raises nothing of its own.

        What the database does not take now is kept in memory and written with the next request or at `aclose`. The
        same `request` (300 characters at most) counts once for a job and claim: name what may be told twice, such as
        a remote parse; without a name each call is a request of its own.
        """
        if not shares:
            return
        if not any(share.requests for share in shares):
            first = shares[0]
            shares = [_with_request(first), *shares[1:]]
        if len(self._owed) >= _MOST_OWED:
            _lost(self._owed.popleft(), "too much is owed")
        self._owed.append(_Entry(request or uuid4().hex, tuple(shares)))
        # A task of its own: the money is spent whatever becomes of the caller's claim, and nobody waits for a database
        # that does not answer.
        task = asyncio.create_task(self._write())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=_WAIT_SECONDS)

    async def allow(self, tenant_id: TenantId) -> None:
        """Return when this tenant may spend; raises OverBudget until the day ends where a budget is used up.

        What the database said counts for five seconds, so a day may end above its budget by what is spent in them.
        """
        answer = self._answers.get(tenant_id)
        if answer is None or answer.until <= self._clock():
            async with self._asking:
                answer = self._answers.get(tenant_id)
                if answer is None or answer.until <= self._clock():
                    answer = await self._ask(tenant_id)
        if answer.resets is not None:
            raise OverBudget(
                "budget_exhausted",
                "Today's budget is used up. The file continues by itself when the next day begins (UTC).",
                retry_after=max(0.0, answer.resets - self._clock()),
                detail=f"budget of {answer.subject}",
            )

    async def aclose(self) -> None:
        """Write what is owed, for ten seconds at most; what cannot be written is said in the log."""
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                if self._tasks:
                    await asyncio.wait(self._tasks)
                if self._owed:
                    await self._write()
        except TimeoutError:
            for task in self._tasks:
                task.cancel()
        while self._owed:
            _lost(self._owed.popleft(), "the worker stopped")

    async def _ask(self, tenant_id: TenantId) -> _Answer:
        row = await self._db.fetchrow("within_budget", tenant_id)
        now = self._clock()
        if row is None:
            answer = _Answer(now + _BUDGET_SECONDS)
        else:
            resets_in: timedelta = row["resets_in"]
            resets = now + resets_in.total_seconds()
            answer = _Answer(min(now + _BUDGET_SECONDS, resets), resets, row["subject"])
        if len(self._answers) >= _TENANTS_REMEMBERED:
            self._answers.clear()
        self._answers[tenant_id] = answer
        return answer

    async def _write(self) -> None:
        """Write all that is owed, oldest first; gives up for now when the database stays away."""
        async with self._writing:
            while self._owed:
                entry = self._owed[0]
                error = await self._record(entry)
                if error is not None and error.code in _MAY_COME_BACK:
                    logger.bind(code=error.code, detail=error.detail, owed=len(self._owed)).warning("usage not written")
                    self._owed.rotate(-1)  # if it is this entry that is refused, the others get past it
                    return
                # The bound may have dropped it meanwhile.
                if self._owed and self._owed[0] is entry:
                    self._owed.popleft()
                if error is not None:
                    _lost(entry, error.detail or error.code)

    async def _record(self, entry: _Entry) -> IngestError | None:
        arguments = _columns(entry)
        for pause in (*_PAUSES_SECONDS, None):
            try:
                await self._db.fetchval("record_usage", *arguments)
            except IngestError as exc:
                if pause is None or exc.code not in _MAY_COME_BACK:
                    return exc
                await self._sleep(pause)
            else:
                return None
        return None


def _with_request(share: Spent) -> Spent:
    return Spent(
        share.job_id, share.claim, share.document_id, share.tenant_id, share.provider, share.model,
        share.pages, share.tokens, 1,
    )  # fmt: skip


def _columns(entry: _Entry) -> tuple[Any, ...]:
    shares = entry.shares
    return (
        entry.request,
        [s.job_id for s in shares], [s.claim for s in shares],
        [s.document_id for s in shares], [s.tenant_id for s in shares],
        [s.provider for s in shares], [s.model for s in shares], [s.kind for s in shares],
        [s.pages for s in shares], [s.tokens for s in shares], [s.requests for s in shares],
    )  # fmt: skip


def _lost(entry: _Entry, why: str) -> None:
    """Say in the log what the database will never know, so that it can be written by hand."""
    for share in entry.shares:
        document = share.document_id and str(share.document_id)
        logger.bind(
            code="usage_lost", detail=why, request=entry.request, job=share.job_id, claim=share.claim,
            document=document, tenant=str(share.tenant_id), provider=share.provider, model=share.model,
            pages=share.pages, tokens=share.tokens, requests=share.requests,
        ).error("usage lost")  # fmt: skip
