"""The real supabase-js in one Deno process, called from Python a line at a time."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local import deno

_SCRIPT = Path(__file__).parent / "clients" / "supabase_client.ts"


def blob(content: bytes, mime_type: str = "") -> dict[str, str]:
    """A Blob, which supabase-js sends as a form."""
    return {"$blob": base64.b64encode(content).decode(), "type": mime_type}


def form(content: bytes, mime_type: str = "") -> dict[str, str]:
    """A FormData that holds a File."""
    return {"$form": base64.b64encode(content).decode(), "type": mime_type}


def raw(content: bytes) -> dict[str, str]:
    """A Uint8Array, which supabase-js sends as the body itself."""
    return {"$bytes": base64.b64encode(content).decode()}


@dataclass(frozen=True)
class Refusal(Exception):
    """What supabase-js returned as `error`."""

    status: str | None
    code: str | None
    message: str


class SupabaseJs:
    """A process that runs calls one after the other."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def call(self, key: str, token: str | None, bucket: str | None, method: str, *arguments: Any) -> Any:
        """Return what the call returned as `data`; raise Refusal for its `error`."""
        request = {"key": key, "token": token, "bucket": bucket, "method": method, "arguments": arguments}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        answer = json.loads(await self._process.stdout.readline())
        if error := answer["error"]:
            raise Refusal(error.get("statusCode"), error.get("code"), error["message"])
        return answer["data"]


@asynccontextmanager
async def supabase_js(url: str) -> AsyncIterator[SupabaseJs]:
    """Run supabase-js against the stack at `url`."""
    argv = deno.command(_SCRIPT, "--allow-net=127.0.0.1", "--allow-env", arguments=[url])
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=deno.environment(),
        cwd=deno.REPOSITORY,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**25,
    )
    try:
        yield SupabaseJs(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await asyncio.wait_for(process.wait(), 10)


class Caller:
    """Somebody with a key and perhaps a token: `await caller.storage("bucket", "upload", …)`."""

    def __init__(self, js: SupabaseJs, key: str, token: str | None = None) -> None:
        self.key = key
        self.token = token
        self._js = js

    async def storage(self, bucket: str | None, method: str, *arguments: Any) -> Any:
        """Call a method of `supabase.storage.from(bucket)`, or of `supabase.storage` without a bucket."""
        return await self._js.call(self.key, self.token, bucket, method, *arguments)

    async def bytes_of(self, bucket: str, name: str) -> bytes:
        """Return what `download` gives."""
        return base64.b64decode(await self.storage(bucket, "download", name))

    @property
    def headers(self) -> dict[str, str]:
        """What an HTTP client sends to be this caller."""
        return {"apikey": self.key} | ({"authorization": f"Bearer {self.token}"} if self.token else {})
