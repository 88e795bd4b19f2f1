"""Joins texts of different documents and tenants into requests, and keeps each answer when it comes.

    order    what one document waits for; leaves with its attempt, and takes along what was not sent
    text     in flight at most once a tenant, whoever asks for it; the first who asked pays for it
    request  filled from the orders by turn, so that a large document does not hold up the small ones

A request goes when it is full or has lingered, and a slot is free. While all slots are busy nothing needs
to linger: what comes meanwhile is joined anyway. What a provider refuses is halved until the bad texts
are alone; their documents are rejected, and everybody else's vectors are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from worker import metrics
from worker.errors import IngestError, Rejected, Throttled, Transient
from worker.model import Claim, TenantId
from worker.pipeline.embed.embedder import Embedder, check_vectors
from worker.pipeline.embed.shares import shares
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.ledger import Spent
from worker.pipeline.limits import IN_PLACE_SECONDS, Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TURN_TEXTS = 64
"""What one order gives to a request before the next one's turn."""
_LEAST_TEXTS = 64
"""What waits is spread over the free requests, but not thinner: a request costs a millisecond of processor."""
_THROTTLED_TRIES = 3
_STORE_PAUSES = (0.2, 1.0, 3.0)
"""What was paid for is worth a few tries."""
_CLOSE_SECONDS = 5.0


class _Text:
    """A text in flight, and who waits for it; the first in `orders` has it in its queue until it is taken."""

    __slots__ = ("content", "key", "orders", "sent", "tenant_id", "tokens")

    def __init__(self, tenant_id: TenantId, key: bytes, content: str, tokens: int) -> None:
        self.tenant_id = tenant_id
        self.key = key
        self.content = content
        self.tokens = tokens
        self.orders: list[Order] = []
        self.sent = False


class Order:
    """What one document waits for: `stored` counts the vectors that came, `paid` those that were asked for it."""

    def __init__(self, batcher: Batcher, claim: Claim) -> None:
        self._batcher = batcher
        self.claim = claim
        self.looking = True
        self.fresh: set[bytes] = set()
        """What was stored for the tenant while this order looked for what is missing."""
        self.queue: deque[_Text] = deque()
        self.texts: set[_Text] = set()
        self.changed = asyncio.Event()
        self.error: Exception | None = None
        self.stored = 0
        self.paid = 0

    def ask(self, texts: Iterable[tuple[bytes, str, int]]) -> None:
        """Put (key, text, tokens) in line; once."""
        self.looking = False
        self._batcher.enrol(self, [text for text in texts if text[0] not in self.fresh])

    async def wait(self, report: Callable[[float], Awaitable[None]]) -> None:
        """Return when every text's vector is stored; raise what came in between, which ends the order."""
        asked = len(self.texts)
        while self.texts or self.error:
            if self.error is not None:
                raise self.error
            await self.changed.wait()
            self.changed.clear()
            if not self.error:
                await report(1 - len(self.texts) / asked)


class Batcher:
    """Stands between the documents under work and one embedder."""

    def __init__(
        self,
        embedder: Embedder,
        vectors: Vectors,
        limits: Limits,
        *,
        spent: Callable[[Sequence[Spent]], Awaitable[None]] | None = None,
        allow: Callable[[TenantId], Awaitable[None]] | None = None,
    ) -> None:
        """`spent` is told what each request cost and raises nothing; `allow` raises for a tenant that may not spend."""
        self.vectors = vectors
        self._embedder = embedder
        self._batching = embedder.batching
        self._limits = limits
        self._spent = spent
        self._allow = allow
        self._orders: set[Order] = set()
        self._turns: deque[Order] = deque()
        self._known: dict[tuple[TenantId, bytes], _Text] = {}
        self._waiting_texts = 0
        self._waiting_tokens = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._requests: set[asyncio.Task[None]] = set()
        # One asks the token bucket at a time: its answer is a wait, not a place in a line.
        self._gate = asyncio.Lock()

    async def allow(self, claim: Claim) -> None:
        """Raise what the budgets say against spending on this claim."""
        if self._allow is not None:
            await self._allow(claim.tenant_id)

    @contextlib.contextmanager
    def order(self, claim: Claim) -> Iterator[Order]:
        """Give an order for one document; at the end of the block what was not sent is dropped.

        Look for missing vectors inside the block: what is stored for others from here on is not asked for again.
        """
        order = Order(self, claim)
        self._orders.add(order)
        try:
            yield order
        finally:
            self._orders.discard(order)
            self._withdraw(order)

    async def aclose(self) -> None:
        """Wait a few seconds for answers under way, which are stored; then hang up."""
        if self._timer is not None:
            self._timer.cancel()
        if self._requests:
            await asyncio.wait(self._requests, timeout=_CLOSE_SECONDS)
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    def enrol(self, order: Order, texts: Iterable[tuple[bytes, str, int]]) -> None:
        """Put an order's texts in line, except those that are in flight already."""
        tenant = order.claim.tenant_id
        for key, content, tokens in texts:
            text = self._known.get((tenant, key))
            if text is None:
                text = self._known[tenant, key] = _Text(tenant, key, content, tokens)
                self._queue(order, text)
            text.orders.append(order)
            order.texts.add(text)
        self._pump()

    def _queue(self, order: Order, text: _Text) -> None:
        if not self._waiting_texts:
            # Alone there is nobody to wait for: an idle worker's document goes at once.
            linger = self._batching.linger if len(self._orders) > 1 else 0.0
            self._due = asyncio.get_running_loop().time() + linger
        if not order.queue:
            self._turns.append(order)
        order.queue.append(text)
        self._count(text, 1)

    def _count(self, text: _Text, by: int) -> None:
        self._waiting_texts += by
        self._waiting_tokens += by * text.tokens

    def _withdraw(self, order: Order) -> None:
        queue, order.queue = order.queue, deque()
        if queue:
            self._turns.remove(order)
        for text in queue:
            self._count(text, -1)
        for text in order.texts:
            text.orders.remove(order)
            if not text.orders and not text.sent:
                del self._known[text.tenant_id, text.key]
        for text in queue:
            if text.orders:  # somebody else waits for it too
                self._queue(text.orders[0], text)
        order.texts.clear()
        self._pump()

    def _pump(self) -> None:
        """Send what is ready to go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._waiting_texts and len(self._requests) < self._batching.at_once:
            full = self._waiting_texts >= self._batching.texts or self._waiting_tokens >= self._batching.tokens
            if not full and loop.time() < self._due:
                self._timer = loop.call_at(self._due, self._pump)
                return
            request = asyncio.create_task(self._request(self._take()), name="embedding request")
            self._requests.add(request)
            request.add_done_callback(self._ended)

    def _ended(self, request: asyncio.Task[None]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            self._pump()

    def _take(self) -> list[_Text]:
        """Take one request's texts off the orders' queues."""
        free = self._batching.at_once - len(self._requests)
        most = min(self._batching.texts, max(_LEAST_TEXTS, -(-self._waiting_texts // free)))
        batch: list[_Text] = []
        tokens = 0
        while self._turns and len(batch) < most:
            order = self._turns[0]
            for _ in range(min(_TURN_TEXTS, len(order.queue), most - len(batch))):
                if batch and tokens + order.queue[0].tokens > self._batching.tokens:
                    return batch
                text = order.queue.popleft()
                self._count(text, -1)
                tokens += text.tokens
                batch.append(text)
            self._turns.popleft()
            if order.queue:
                self._turns.append(order)
        return batch

    async def _request(self, batch: Sequence[_Text]) -> None:
        try:
            await self._ask(batch)
        except Exception as exc:  # noqa: BLE001 - belongs to the attempts whose texts these are, and is raised there
            for text in batch:
                self._fail(text, exc)

    async def _ask(self, batch: Sequence[_Text], *, refused: bool = False) -> bool:
        """Get a batch's vectors stored, and say whether all were; `refused`: as a whole it has a bad text, surely."""
        # What only ended jobs wanted is not asked for.
        batch = [text for text in batch if text.orders]
        if not batch:
            return True
        if len(batch) == 1 or not refused:
            refusal = await self._send(batch)
            if refusal is None:
                return True
            if len(batch) == 1:
                self._fail(batch[0], refusal)
                return False
        middle = len(batch) // 2
        first = await self._ask(batch[:middle])
        await self._ask(batch[middle:], refused=first)
        return False

    async def _send(self, batch: Sequence[_Text]) -> Rejected | None:
        """Send one request and keep its answer; return the provider's refusal, if it refuses.

        A 429 with a short wait is waited for here: its documents would be fetched and read again instead.
        """
        provider = self._embedder.model.provider
        for tries_left in reversed(range(_THROTTLED_TRIES)):
            async with self._gate:
                await self._limits.take(provider, requests=1, tokens=sum(text.tokens for text in batch))
            # Who ended while we waited is left out.
            batch = [text for text in batch if text.orders]
            if not batch:
                return None
            try:
                return await self._answered(batch)
            except Throttled as exc:
                self._unsent(batch)
                throttled = await self._limits.blocked(provider, exc.retry_after)
                if not tries_left or throttled.retry_after >= IN_PLACE_SECONDS:
                    raise throttled from exc
        raise AssertionError("the last try returns or raises")

    async def _answered(self, batch: Sequence[_Text]) -> Rejected | None:
        model = self._embedder.model
        # Who has waited longest pays.
        payers = [text.orders[0] for text in batch]
        bills: list[int] = []
        try:
            for text in batch:
                text.sent = True
            with metrics.asking(model.provider):
                vectors = await self._embedder.embed([text.content for text in batch], billed=bills.append)
                check_vectors(vectors, count=len(batch), model=model)
            await self._store(batch, vectors)
        except Rejected as exc:
            self._unsent(batch)
            return exc
        except IngestError:
            if bills:  # the answer is of no use, but it was counted
                await self._tell(payers, batch, sum(bills))
            raise
        for payer in payers:
            payer.paid += 1
        # Before the ledger is told: publishing need not wait for it.
        self._done(batch)
        await self._tell(payers, batch, sum(bills) if bills else None)
        return None

    def _unsent(self, batch: Iterable[_Text]) -> None:
        for text in batch:
            text.sent = False
            if not text.orders:
                self._forget(text)

    async def _store(self, batch: Sequence[_Text], vectors: NDArray[np.float32]) -> None:
        owners = [(text.tenant_id, text.key) for text in batch]
        for pause in _STORE_PAUSES:
            try:
                return await self.vectors.store(owners, vectors)
            except Transient:
                await asyncio.sleep(pause)
        return await self.vectors.store(owners, vectors)

    async def _tell(self, payers: Sequence[Order], batch: Sequence[_Text], billed: int | None) -> None:
        """Write down what a request cost."""
        used = billed if billed is not None else sum(text.tokens for text in batch)
        metrics.TOKENS.labels(self._embedder.model.provider).inc(used)
        if self._spent is not None:
            counts = [(payer.claim, text.tokens) for payer, text in zip(payers, batch, strict=True)]
            await self._spent(shares(self._embedder.model, counts, billed))

    def _done(self, batch: Sequence[_Text]) -> None:
        looking = [order for order in self._orders if order.looking]
        for text in batch:
            for order in looking:
                if order.claim.tenant_id == text.tenant_id:
                    order.fresh.add(text.key)
            for order in self._forget(text):
                order.stored += 1
                order.changed.set()

    def _fail(self, text: _Text, error: Exception) -> None:
        for order in self._forget(text):
            order.error = error
            order.changed.set()

    def _forget(self, text: _Text) -> list[Order]:
        """Take a text off the books, and return who waited for it."""
        orders, text.orders = text.orders, []
        if self._known.get((text.tenant_id, text.key)) is text:
            del self._known[text.tenant_id, text.key]
        for order in orders:
            order.texts.discard(text)
        return orders
