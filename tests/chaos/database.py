"""The harness's own way to the database: past every proxy, and back after every crash of Postgres."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from local.stack import Stack
from tests.chaos.vectors import MODEL

_PATIENCE_SECONDS = 30.0
LOST = (
    OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError,
)  # fmt: skip
"""What a lost connection may look like."""

_HERE = Path(__file__).parent
_NAME = re.compile(r"^-- name: ([a-z_0-9]+)\n", re.MULTILINE)
_parts = _NAME.split((_HERE / "questions.sql").read_text(encoding="utf-8"))
QUESTIONS = {name: text.strip().removesuffix(";") for name, text in zip(_parts[1::2], _parts[2::2], strict=True)}
"""Everything that is asked, by name."""


class Observer:
    """Asks as the superuser; each question is repeated until it is answered, so it must bear that."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def prepare(self, *, unfenced: bool = False) -> None:
        """Install what notes effects, and make the model of the run the active one; `unfenced` takes the fence away."""
        async with self._turn:
            connection = await self._connected()
            await connection.execute((_HERE / "schema.sql").read_text(encoding="utf-8"))
            if unfenced:
                await connection.execute((_HERE / "sabotage.sql").read_text(encoding="utf-8"))
            await connection.execute(QUESTIONS["add_model"], MODEL.provider, MODEL.name, MODEL.dimensions)

    async def fetch(self, question: str, *arguments: Any) -> Sequence[asyncpg.Record]:
        """Return the rows of a question."""
        async with self._turn, asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                try:
                    rows: list[asyncpg.Record] = await (await self._connected()).fetch(
                        QUESTIONS[question], *arguments, timeout=20
                    )
                    return rows
                except LOST:
                    await self.forget()
                    await asyncio.sleep(0.05)

    async def value(self, question: str, *arguments: Any) -> Any:
        """Return the first value of the first row, None where there is no row."""
        rows = await self.fetch(question, *arguments)
        return rows[0][0] if rows else None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection]:
        """Give a connection in one transaction; TimeoutError, or what asyncpg raises, when it is lost."""
        async with self._turn, asyncio.timeout(_PATIENCE_SECONDS):
            connection = await self._connected()
            try:
                async with connection.transaction():
                    yield connection
            except LOST:
                await self.forget()
                raise

    async def forget(self) -> None:
        """Drop the connection; the next question makes a new one."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None:
            self._connection = await asyncpg.connect(self._stack.admin_url, timeout=5)
        return self._connection
