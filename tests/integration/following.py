"""Following channels with both real clients, and making a document move while they do."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from realtime import AsyncRealtimeClient, RealtimeSubscribeStates

from local import deno
from local.stack import Stack

_SCRIPT = Path(__file__).parent / "clients" / "follower.ts"


def token(stack: Stack, user: str, *, seconds: float = 3600, **claims: object) -> str:
    """Sign a token as the stack's Auth server does."""
    said = {"sub": user, "role": "authenticated", "aud": "authenticated", "exp": int(time.time() + seconds)} | claims

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    signed = ".".join(part(json.dumps(text).encode()) for text in ({"alg": "HS256", "typ": "JWT"}, said))
    return f"{signed}.{part(hmac.digest(stack.jwt_secret.encode(), signed.encode(), hashlib.sha256))}"


@dataclass
class Heard:
    """What one follower heard: (kind, time in seconds since 1970, what)."""

    lines: list[tuple[str, float, Any]] = field(default_factory=list)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, kind: str, at: float, said: Any) -> None:
        self.lines.append((kind, at, said))
        self._more.set()

    def all(self, kind: str) -> list[Any]:
        """What was heard of one kind, in order."""
        return [said for name, _, said in self.lines if name == kind]

    def payloads(self) -> list[dict[str, Any]]:
        """The payloads of all broadcasts."""
        return [said["payload"] for said in self.all("broadcast")]

    async def until(self, true: Callable[[Heard], bool], seconds: float = 20) -> None:
        """Wait until what was heard is as wished."""
        try:
            async with asyncio.timeout(seconds):
                while not true(self):
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"after {seconds} s this was heard: {self.lines}") from None

    async def state(self, state: str) -> Any:
        """Wait for a state of the subscription and return what was said with it."""
        await self.until(lambda heard: any(said["state"] == state for said in heard.all("state")))
        return next(said["error"] for said in self.all("state") if said["state"] == state)


class SupabaseJsFollowers:
    """Any number of supabase-js clients in one Deno process; made by `supabase_js_followers`."""

    def __init__(self, process: asyncio.subprocess.Process, stack: Stack) -> None:
        self._process = process
        self._stack = stack
        self._heard: dict[str, Heard] = {}

    async def follow(
        self, topic: str, access: str | None, *, key: str | None = None, private: bool = True, **more: object
    ) -> tuple[str, Heard]:
        """Subscribe to a topic; returns the follower's name and what it will hear."""
        name = str(uuid4())
        self._heard[name] = Heard()
        await self.do(
            "follow", name, key=key or self._stack.publishable_key, token=access, topic=topic, private=private, **more
        )
        return name, self._heard[name]

    async def do(self, what: str, name: str, **given: object) -> None:
        """Let a follower do something; what comes of it is heard."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "name": name, **given}).encode() + b"\n")
        await self._process.stdin.drain()

    async def read(self) -> None:
        """Hand out what is heard until the process ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            told = json.loads(line)
            assert told["kind"] != "failed", told
            self._heard[told["name"]].add(told["kind"], told["at"] / 1000, told["said"])


@contextlib.asynccontextmanager
async def supabase_js_followers(stack: Stack) -> AsyncIterator[SupabaseJsFollowers]:
    """Run the followers of supabase-js."""
    process = await asyncio.create_subprocess_exec(
        *deno.command(_SCRIPT, "--allow-net=127.0.0.1", "--allow-env", arguments=[stack.api_url]),
        env=deno.environment(), cwd=deno.REPOSITORY, limit=2**24,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    followers = SupabaseJsFollowers(process, stack)
    reading = asyncio.create_task(followers.read())
    try:
        yield followers
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)
        await reading


class PythonFollower:
    """A client of the package `realtime` with one channel; made by `python_follower`."""

    def __init__(self, client: AsyncRealtimeClient, topic: str, *, private: bool = True) -> None:
        self.heard = Heard()
        self.client = client
        presence: Any = {"key": "", "enabled": False}
        config: Any = {"broadcast": {"ack": False, "self": False}, "presence": presence, "private": private}
        self.channel = client.channel(topic, {"config": config})
        for event in ("progress", "jobs"):
            self.channel.on_broadcast(event, lambda said: self.heard.add("broadcast", time.time(), said))

    def on_state(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        """Note a state."""
        self.heard.add("state", time.time(), {"state": state.value, "error": str(error)})


@contextlib.asynccontextmanager
async def python_follower(
    stack: Stack, topic: str, access: str | None, *, key: str | None = None, changes: str | None = None
) -> AsyncIterator[PythonFollower]:
    """Follow a topic with realtime-py; `changes` is a filter on public.jobs to follow besides."""
    client = AsyncRealtimeClient(f"{stack.api_url}/realtime/v1", token=key or stack.publishable_key)
    await client.connect()
    if access is not None:
        await client.set_auth(access)
    follower = PythonFollower(client, topic)
    if changes is not None:
        events: Any = "*"
        follower.channel.on_postgres_changes(
            events, lambda said: follower.heard.add("change", time.time(), said),
            schema="public", table="jobs", filter=changes,
        )  # fmt: skip
    try:
        await follower.channel.subscribe(follower.on_state)
        yield follower
    finally:
        await client.close()


class Mover:
    """Moves the job of a document without a worker, so that each move is one commit at a known time."""

    def __init__(self, connection: asyncpg.Connection, document: UUID) -> None:
        self._connection = connection
        self.document = document
        self.commits: list[float] = []

    @classmethod
    async def begin(cls, connection: asyncpg.Connection, document: UUID) -> Mover:
        """Let the document's waiting job run, without a lease."""
        await connection.execute(
            "update public.jobs set state = 'running', attempt = 1, claim = 1, stage = 'fetch', progress = 0,"
            " started_at = now() where document_id = $1", document,
        )  # fmt: skip
        return cls(connection, document)

    async def move(self, progress: float, stage: str = "embed") -> None:
        """Move the bar, and note when it was committed: before the statement is sent."""
        self.commits.append(time.time())
        await self._connection.execute(
            "update public.jobs set stage = $2, progress = $3 where document_id = $1", self.document, stage, progress
        )

    async def complete(self) -> None:
        """End the job, so that nobody takes it up."""
        await self._connection.execute(
            "with done as (update public.jobs set state = 'completed', finalized_at = now(), stage = null, progress = 1"
            " where document_id = $1 returning *)"
            " insert into public.job_events"
            " (job_id, document_id, generation, tenant_id, event, state, stage, attempt, claim)"
            " select id, document_id, generation, tenant_id, 'complete', state, stage, attempt, claim from done",
            self.document,
        )
