"""Real requests to the services that a document needs, each as small as can be and with a time of its own.

They have an HTTP client of their own: the pipeline's connections are not theirs to use up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import httpx

from worker.errors import IngestError, Misconfigured
from worker.pipeline.probe import ask, unreachable
from worker.queue.join import join_and_leave

PROBE_SECONDS = 5.0

Provider: TypeAlias = Callable[[httpx.AsyncClient], Awaitable[None]]
"""Asks a provider for what costs nothing; raises the errors of errors.py."""


@runtime_checkable
class Probed(Protocol):
    """An adapter whose service can be asked for what costs nothing."""

    async def probe(self, http: httpx.AsyncClient) -> None: ...


_SETTINGS = "SUPABASE_URL and SUPABASE_SECRET_KEY"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a probe; `code` and `message` are None when the service is well."""

    milliseconds: float
    code: str | None = None
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Probes:
    """The services of one project and its providers (`llamaparse`, `openai`), where they are configured.

    `hears_realtime` says whether a channel of ours stands and proves itself; then nobody joins another one.
    """

    supabase_url: str
    secret_key: str = field(repr=False)
    providers: Mapping[str, Provider]
    hears_realtime: Callable[[], bool]
    http: httpx.AsyncClient = field(repr=False)
    seconds: float = PROBE_SECONDS

    @property
    def services(self) -> list[str]:
        """Which services this worker can ask."""
        return ["supabase_auth", "storage", "realtime", *self.providers]

    async def ask(self, service: str) -> Outcome:
        """Ask a service, for `seconds` at most; raises nothing of its own."""
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            async with asyncio.timeout(self.seconds):
                await self._request(service)
        except IngestError as exc:
            return Outcome((clock() - began) * 1000, exc.code, exc.public_message)
        except TimeoutError:
            said = f"No answer within {self.seconds:g} s. Look at the service's status page, and at the network."
            return Outcome((clock() - began) * 1000, "timeout", said)
        return Outcome((clock() - began) * 1000)

    async def _request(self, service: str) -> None:
        match service:
            case "supabase_auth":
                await ask(self.http, f"{self._base}/auth/v1/health", self._headers, service="Auth", settings=_SETTINGS)
            case "storage":
                await self._storage()
            case "realtime":
                if not self.hears_realtime():
                    await join_and_leave(self.supabase_url, self.secret_key)
            case _:
                await self.providers[service](self.http)

    @property
    def _base(self) -> str:
        return self.supabase_url.rstrip("/")

    @property
    def _headers(self) -> dict[str, str]:
        return {"apikey": self.secret_key, "authorization": f"Bearer {self.secret_key}"}

    async def _storage(self) -> None:
        # The list of buckets goes through the key, the server and its database; a list of objects grows with them.
        answer = await ask(
            self.http, f"{self._base}/storage/v1/bucket", self._headers, service="Storage", settings=_SETTINGS
        )
        try:
            buckets = answer.json()
        except ValueError as exc:
            raise unreachable("Storage", _SETTINGS, "an answer that is no JSON") from exc
        if not buckets:
            raise Misconfigured(
                "no_bucket",
                "Storage shows no bucket to this key. SUPABASE_SECRET_KEY must be a secret key, not a publishable one, "
                "and the migrations must be applied.",
            )
