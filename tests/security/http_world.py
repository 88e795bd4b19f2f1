"""Two users of a running stack, a published document of the first, and requests with good and bad tokens."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx

from local.stack import Stack
from local.worker_process import working
from tests.people import Person, Project

VECTOR = [0.05] * 384
TEXT = b"# Harbour\n\nThe tide gauge of the harbour stands at the eastern quay.\n"


class HttpWorld:
    """`ada` owns the document, `bob` is anybody else; made by `http_world`."""

    def __init__(self, stack: Stack, project: Project, ada: Person, bob: Person) -> None:
        self.stack = stack
        self.project = project
        self.ada = ada
        self.bob = bob
        self.document = ""
        self.job = 0
        self.parse = 0
        self.name = f"{ada.id}/harbour.md"
        self.tokens: dict[str, str] = {}
        self.client = httpx.AsyncClient(base_url=stack.api_url, timeout=60)

    async def send(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, key: str | None = None, **more: str
    ) -> httpx.Response:
        """Send a request with the publishable key (or `key`), and `token` where there is one."""
        headers = {"apikey": key or self.stack.publishable_key, **more}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        content = None
        if body is not None:
            headers.setdefault("content-type", "application/json")
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.client.request(method, path, content=content, headers=headers)

    async def as_caller(self, caller: str, method: str, path: str, body: Any) -> httpx.Response:
        """Send it as one of matrix.yaml's callers over HTTP."""
        if caller == "secret":
            return await self.send(method, path, body, key=self.stack.secret_key, token=self.stack.secret_key)
        if caller == "keyless":
            return await self.send(method, path, body, token=self.tokens["A"], key="sb_publishable_of-another-project")
        return await self.send(method, path, body, token=self.tokens.get(caller))

    async def fresh(self, name: str | None = None, content: bytes = b"fresh", owner: Person | None = None) -> str:
        """Store a new object in ada's folder, with the secret key, and return its name."""
        name = name or f"{(owner or self.ada).id}/{uuid4()}.txt"
        path, key = f"/storage/v1/object/documents/{name}", self.stack.secret_key
        answer = await self.send("POST", path, content, key=key, token=key, **{"content-type": "text/plain"})
        assert answer.status_code == 200, answer.text
        return name

    async def bytes_of(self, name: str) -> bytes | None:
        """Return what is stored under a name, with the secret key; None where there is nothing."""
        key = self.stack.secret_key
        answer = await self.send("GET", f"/storage/v1/object/authenticated/documents/{name}", key=key, token=key)
        return answer.content if answer.status_code == 200 else None

    async def state(self) -> list[str]:
        """Return every row of ada's document, with xmin, which any write changes."""
        rows = await self.project.connection.fetch(
            "select row(o.name, o.version, o.metadata)::text as it from storage.objects o where o.name = $1"
            " union all select row(d.*, d.xmin)::text from public.documents d where d.name = $1"
            " union all select row(j.*, j.xmin)::text from public.jobs j where j.document_id = $2::uuid"
            " union all select row(c.id, c.content, c.xmin)::text from public.chunks c where c.document_id = $2::uuid"
            " order by 1",
            self.name, self.document,
        )  # fmt: skip
        return [row["it"] for row in rows]


@asynccontextmanager
async def http_world(stack: Stack, log: Path) -> AsyncIterator[HttpWorld]:
    """Sign two users up and have the first one's document published by a real worker."""
    connection = await asyncpg.connect(stack.admin_url)
    ada, bob = await Person.sign_up(stack), await Person.sign_up(stack)
    world = HttpWorld(stack, Project(connection), ada, bob)
    try:
        async with working(stack, log):
            await ada.upload("harbour.md", TEXT, mime_type="text/markdown")
            row = await world.project.settled(world.name)
        assert row["state"] == "ready", dict(row)
        world.document, world.parse = str(row["id"]), row["published_parse_id"]
        world.job = await connection.fetchval("select id from public.jobs where document_id = $1", row["id"])
        await _make_tokens(world)
        yield world
    finally:
        await world.client.aclose()
        for person in (ada, bob):
            await person.close()
        await connection.close()


async def _make_tokens(world: HttpWorld) -> None:
    for name, person in (("A", world.ada), ("B", world.bob)):
        session = await person.client.auth.get_session()
        assert session is not None
        world.tokens[name] = session.access_token
    head, body, _ = world.tokens["A"].split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    secret = world.stack.jwt_secret
    world.tokens |= {
        "expired": signed(claims | {"exp": int(time.time()) - 60, "iat": int(time.time()) - 3660}, secret),
        "forged": signed(claims, "a secret that somebody guessed"),
        "none": f"{_part({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        "stripped": f"{head}.{body}.",
    }


def signed(claims: dict[str, Any], secret: str) -> str:
    """Return a token as Auth makes them (HS256)."""
    text = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
    return f"{text}.{_encoded(hmac.new(secret.encode(), text.encode(), hashlib.sha256).digest())}"


def _part(value: Any) -> str:
    return _encoded(json.dumps(value).encode())


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")
