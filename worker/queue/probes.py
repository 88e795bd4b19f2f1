"""Real requests to the services that a document needs, each as small as can be and with a time of its own.

They have an HTTP client of their own: the pipeline's connections are not theirs to use up.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable
from urllib.parse import quote

import httpx

from worker.errors import IngestError, Misconfigured, Unavailable
from worker.pipeline.probe import ask, refused, unreachable
from worker.queue.broadcast import TOPIC

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
                    await self._join()
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

    async def _join(self) -> None:
        """Open a channel as wake-ups do, and leave."""
        # In a thread: it takes 40 ms, and most workers need it for this alone.
        connecting = await asyncio.to_thread(_websockets)
        url = f"ws{self._base.removeprefix('http')}/realtime/v1/websocket?apikey={quote(self.secret_key)}&vsn=1.0.0"
        from websockets.exceptions import InvalidStatus, WebSocketException

        try:
            async with connecting.connect(url, open_timeout=None, close_timeout=0.5, max_size=1 << 20) as socket:
                await socket.send(_join_message(self.secret_key))
                while (said := _reply(await socket.recv())) is None:
                    pass
        except InvalidStatus as exc:
            refusal = refused(exc.response.status_code, service="Realtime", settings=_SETTINGS)
            raise refusal or unreachable("Realtime", _SETTINGS, "no websocket") from None  # it quotes the URL
        except (OSError, WebSocketException, ValueError) as exc:
            raise unreachable("Realtime", _SETTINGS, type(exc).__name__) from None
        if said != "ok":
            raise Unavailable(
                "join_refused",
                f"Realtime does not let the worker join its channel. Check {_SETTINGS}, and that the migrations are "
                "applied.",
            )


def _websockets() -> Any:
    from websockets.asyncio import client

    return client


def _join_message(key: str) -> str:
    config = {
        "private": True,
        "broadcast": {"ack": False, "self": False},
        "presence": {"key": "", "enabled": False},
        "postgres_changes": [],
    }
    payload = {"access_token": key, "config": config}
    return json.dumps(
        {"topic": f"realtime:{TOPIC}", "event": "phx_join", "ref": "1", "join_ref": "1", "payload": payload}
    )


def _reply(frame: str | bytes) -> str | None:
    """Return how a join was answered; None for what is another message."""
    message = json.loads(frame)
    if not isinstance(message, dict) or message.get("event") != "phx_reply" or message.get("ref") != "1":
        return None
    return str(message.get("payload", {}).get("status"))
