"""The real tus-js-client in one Deno process, called from Python a line at a time."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from local import deno
from tests.integration.supabase_js import Refusal

_SCRIPT = Path(__file__).parent / "clients" / "tus_client.ts"
RESUMABLE = "/storage/v1/upload/resumable"


class Broken(Exception):
    """The connection broke; `url` continues the upload, if it was begun."""

    def __init__(self, url: str | None, message: str) -> None:
        super().__init__(message)
        self.url = url


class TusJs:
    """A process that uploads one file after the other."""

    def __init__(self, process: asyncio.subprocess.Process, api_url: str, directory: Path) -> None:
        self._process = process
        self._api_url = api_url
        self._directory = directory

    @property
    def directory(self) -> Path:
        """Where files must lie that it may read."""
        return self._directory

    async def upload(
        self,
        headers: dict[str, str],
        bucket: str,
        name: str,
        content: bytes | Path,
        *,
        metadata: dict[str, str] | None = None,
        upsert: bool = False,
        path: str = RESUMABLE,
        port: int | None = None,
        url: str | None = None,
        retries: bool = True,
        **options: Any,
    ) -> str:
        """Upload and return the upload's address, with which `url` continues it.

        `port` is that of a line to the stack. Raises Refusal for what the server answered, and Broken where the
        connection broke and it may not go on by itself. A file must lie below the client's directory.
        """
        file = content if isinstance(content, Path) else self._directory / "content"
        if isinstance(content, bytes):
            file.write_bytes(content)
        given = {"bucketName": bucket, "objectName": name, "contentType": "text/markdown", "cacheControl": "60"}
        request = {
            "path": str(file),
            "options": {
                "endpoint": (f"http://127.0.0.1:{port}" if port else self._api_url) + path,
                "headers": headers | ({"x-upsert": "true"} if upsert else {}),
                "metadata": given | (metadata or {}),
                "uploadUrl": url,
                "uploadSize": file.stat().st_size,
                # 409 is tried again like a broken line, so that a refusal takes all of these.
                "retryDelays": [0, 20, 50, 100] if retries else None,
            }
            | options,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        answer = json.loads(await self._process.stdout.readline())
        if error := answer["error"]:
            if error["status"] is None:
                raise Broken(answer["url"], error["message"])
            raise Refusal(str(error["status"]), None, error["message"])
        return str(answer["url"])


@asynccontextmanager
async def tus_js(api_url: str) -> AsyncIterator[TusJs]:
    """Run tus-js-client against the stack at `api_url`."""
    with tempfile.TemporaryDirectory(prefix="sluice-tus-") as directory:
        argv = deno.command(_SCRIPT, "--allow-net=127.0.0.1", "--allow-env", f"--allow-read={directory}")
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=deno.environment(),
            cwd=deno.REPOSITORY,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield TusJs(process, api_url, Path(directory))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            await asyncio.wait_for(process.wait(), 10)
