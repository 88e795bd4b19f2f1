"""An installation for the doctor: a whole local stack that is well, and what a test breaks of it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest

from local import deno
from local.stack import Stack
from worker.operate.doctor import run
from worker.operate.doctor.check import Finding
from worker.operate.doctor.examination import Examination, World

OURS = ("SLUICE_", "SUPABASE_", "DATABASE_", "LISTEN_DATABASE_URL", "OPENAI_", "LLAMA_CLOUD_")
REF, OTHER_REF = "abcdefghijklmnopqrst", "tsrqponmlkjihgfedcba"

ALWAYS: dict[str, str] = (
    {} if (deno.REPOSITORY / "supabase/functions/health/index.ts").exists() else {"health_function": "function_missing"}
)
"""What is found in a checkout without the edge function health, whatever else is broken."""


@dataclass
class Installation:
    """`environment` is the worker's; `admin` is the superuser, `owner` is postgres; each set-up gets its own copy."""

    stack: Stack
    admin: asyncpg.Connection
    owner: asyncpg.Connection
    directory: Path
    environment: dict[str, str]
    world: World = field(default_factory=World)
    paid: bool = False
    monkeypatch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)

    @property
    def url(self) -> str:
        """DATABASE_URL of the worker."""
        return self.environment["DATABASE_URL"]

    def at(self, host: str = "", *, port: int | None = None, user: str = "", query: str = "", path: str = "") -> str:
        """Return DATABASE_URL with another host, port, user, query or database."""
        parts = urlsplit(self.url)
        netloc = f"{user or parts.username}:{parts.password}@{host or parts.hostname}:{port or parts.port}"
        return parts._replace(netloc=netloc, query=query, path=path or parts.path).geturl()

    @contextlib.asynccontextmanager
    async def sql(self, breaking: str, mending: str, *, owner: bool = False) -> AsyncIterator[None]:
        """Break something in the database, and mend it afterwards."""
        connection = self.owner if owner else self.admin
        await connection.execute(breaking)
        try:
            yield
        finally:
            await connection.execute(mending)

    def behind(self, hosts: Mapping[str, str]) -> None:
        """Let HTTP to these hosts go to other addresses; names of the world outside lead nowhere in a test."""

        class Rerouted(httpx.AsyncBaseTransport):
            def __init__(self) -> None:
                self._real = httpx.AsyncHTTPTransport()

            async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
                if target := hosts.get(request.url.host):
                    parts = urlsplit(target)
                    request.url = request.url.copy_with(scheme=parts.scheme, host=parts.hostname, port=parts.port)
                return await self._real.handle_async_request(request)

            async def aclose(self) -> None:
                await self._real.aclose()

        self.world = replace(self.world, http=lambda: httpx.AsyncClient(transport=Rerouted(), timeout=5))


Breaking = Callable[[Installation], AbstractAsyncContextManager[None]]
SetUp = tuple[Breaking, dict[str, str], str]
"""How to break it, the code of each check that must find something, and a part of what is said."""


def setting(**variables: str) -> Breaking:
    """Set variables of the environment."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        installation.environment.update(variables)
        yield

    return broken


async def look(installation: Installation, only: str | None = None) -> list[Finding]:
    """Run the doctor in this process, in the installation's environment."""
    for name in [name for name in os.environ if name.startswith(OURS)]:
        installation.monkeypatch.delenv(name)
    for name, value in installation.environment.items():
        installation.monkeypatch.setenv(name, value)
    examination = Examination.begin(world=installation.world, paid=installation.paid)
    checks = run.CHECKS if only is None else run.with_needs([c for c in run.CHECKS if only in (c.name, c.layer)])
    return await run.examine(examination, checks)


async def found_as(installation: Installation, set_up: SetUp) -> None:
    """Break the installation, and see that the doctor finds exactly that and tells no secret."""
    breaking, expected, sentence = set_up
    async with breaking(installation):
        began = time.monotonic()
        findings = await look(installation)
        took = time.monotonic() - began
    ill = {each.name: each for each in findings if each.status in ("warning", "failed")}
    looked_at = {each.name for each in findings if each.status != "skipped"}
    always = {name: code for name, code in ALWAYS.items() if name in looked_at}
    assert {name: each.code for name, each in ill.items()} == always | expected, ill
    assert sentence in " ".join(f"{ill[name].message} {ill[name].remedy}" for name in expected)
    assert all(each.message.endswith(".") and each.remedy for each in ill.values())
    said = json.dumps([finding.told() for finding in findings], ensure_ascii=False)
    assert [secret for secret in _secrets(installation) if secret in said] == []
    assert took < 20


def _secrets(installation: Installation) -> list[str]:
    secrets = [
        *installation.stack.secrets.passwords.values(),
        installation.stack.secret_key,
        installation.stack.jwt_secret,
    ]
    secrets += [value for name, value in installation.environment.items() if name.endswith(("KEY", "SECRET"))]
    return [secret for secret in secrets if len(secret) > 3]


def ids(set_ups: Mapping[str, Any]) -> list[Any]:
    """Return a table of set-ups as parameters, each named as it is written."""
    return [pytest.param(set_up, id=name) for name, set_up in set_ups.items()]
