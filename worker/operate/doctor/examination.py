"""What the checks share: the environment, the settings as far as they can be read, and the connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from worker.db import queries
from worker.settings import Settings

if TYPE_CHECKING:
    import asyncpg
    import httpx


async def resolve(host: str, port: int) -> list[tuple[int, str]]:
    """Return (family, address) of a host as this machine resolves it; raises OSError for one that nobody knows."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(int(family), str(address[0])) for family, _, _, _, address in found]


def routes_ipv6() -> bool:
    """Say whether this machine has a way to the IPv6 internet; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.connect(("2001:4860:4860::8888", 53))
            return True
    except OSError:
        return False


def http_client() -> httpx.AsyncClient:
    """Make the client for all HTTP checks."""
    import httpx

    return httpx.AsyncClient(timeout=httpx.Timeout(5, connect=3), follow_redirects=False)


class Unanswered(Exception):
    """An HTTP request had no answer; says why."""


@dataclass(frozen=True, slots=True)
class World:
    """What lies outside the process, as far as a test cannot make it: names, IPv6, the clock, far hosts."""

    resolve: Callable[[str, int], Any] = resolve
    routes_ipv6: Callable[[], bool] = routes_ipv6
    now: Callable[[], float] = time.time
    http: Callable[[], httpx.AsyncClient] = http_client


@dataclass
class Examination:
    """One run of the doctor. `close` ends its connections."""

    environment: Mapping[str, str]
    settings: Settings
    wrong: Mapping[str, str]
    """Variables that are missing or wrong, with the reason; `settings` holds their defaults, or nothing."""
    world: World = field(default_factory=World)
    paid: bool = False
    offers_tls: bool = False
    connection: asyncpg.Connection | None = None
    buckets: tuple[str, ...] = ("documents",)
    _asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _http: httpx.AsyncClient | None = None

    @classmethod
    def begin(cls, *, world: World | None = None, paid: bool = False) -> Examination:
        """Read the environment, half wrong or not."""
        settings, wrong = read()
        return cls(os.environ, settings, wrong, world or World(), paid)

    async def request(self, method: str, url: str, **more: Any) -> httpx.Response:
        """Send a request; raises Unanswered when no answer comes, whatever it is."""
        import httpx  # here: a deploy that asks for the migrations alone would wait for it

        if self._http is None:
            self._http = self.world.http()
        try:
            return await self._http.request(method, url, **more)
        except httpx.HTTPError as exc:
            raise Unanswered(reason(exc)) from exc

    @property
    def database_url(self) -> str:
        """DATABASE_URL, empty where it is not set."""
        return self.settings.database_url.get_secret_value()

    @property
    def secret_key(self) -> str:
        """SUPABASE_SECRET_KEY, empty where it is not set."""
        return self.settings.supabase_secret_key.get_secret_value()

    @property
    def api_url(self) -> str:
        """SUPABASE_URL without a slash at its end."""
        return self.settings.supabase_url.rstrip("/")

    async def ask(self, name: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run a named call on the one connection that database_login opened; raises what asyncpg raises."""
        assert self.connection is not None
        async with self._asking:
            rows: list[asyncpg.Record] = await self.connection.fetch(queries.load()[name], *arguments)
            return rows

    async def ask_one(self, name: str, *arguments: Any) -> asyncpg.Record:
        """Run a named call that returns one row."""
        return (await self.ask(name, *arguments))[0]

    def without_secrets(self, text: str) -> str:
        """Take out whatever of the settings is secret; no sentence should hold any in the first place."""
        for secret in self._secrets():
            text = text.replace(secret, "…")
        return text

    async def close(self) -> None:
        """Close what was opened, within a bounded time."""
        if self.connection is not None:
            self.connection.terminate()
        if self._http is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._http.aclose(), 2)

    def _secrets(self) -> list[str]:
        secrets = []
        for name in type(self.settings).model_fields:
            value = getattr(self.settings, name)
            if isinstance(value, SecretStr) and value.get_secret_value():
                secrets.append(value.get_secret_value())
                with contextlib.suppress(ValueError):
                    secrets.append(urlsplit(value.get_secret_value()).password or "")
        return sorted((secret for secret in secrets if len(secret) > 3), key=len, reverse=True)


def reason(exc: Exception) -> str:
    """Return why a connection failed, in the system's words."""
    return f"{type(exc).__name__}: {exc}".rstrip(": ")[:150]


def read() -> tuple[Settings, dict[str, str]]:
    """Return the settings and what is wrong with them, by variable; what is wrong has its default then, or is empty."""
    try:
        return Settings(), {}
    except ValidationError as exc:
        wrong: dict[str, str] = {}
        instead: dict[str, Any] = {}
        for error in exc.errors(include_input=False, include_url=False):
            place = str(error["loc"][0])
            variable = place if place.isupper() else f"SLUICE_{place.upper()}"
            wrong[variable] = "is not set" if error["type"] == "missing" else error["msg"].removeprefix("Value error, ")
            field_ = _field(place)
            instead[place] = "" if field_ is None or field_.is_required() else field_.default
        return Settings.model_validate(instead), wrong


def _field(place: str) -> Any:
    """Return a field by its name or by a variable's; errors name the one or the other."""
    for name, field_ in Settings.model_fields.items():
        if place == name or place in getattr(field_.validation_alias, "choices", ()):
            return field_
    return None
