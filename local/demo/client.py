"""The demo's people, each a real supabase-js client in one Deno process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from local import deno
from local.stack import Stack

_CLIENT = deno.REPOSITORY / "local" / "demo" / "client.ts"
_ANSWER_BYTES = 64 * 1024 * 1024
# An upload of the largest allowed file takes a second here; this only ends what hangs.
_ANSWER_SECONDS = 120


class ClientError(Exception):
    """Supabase refused a request, or the client is gone; `code` is Supabase's own."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Client:
    """Sends requests to client.ts; any number may be under way. Made by `connected`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.told: Callable[[dict[str, Any]], None] = lambda _told: None
        """What is called with each thing that a followed document's channel says."""

    async def ask(self, who: str, what: str, **given: object) -> Any:
        """Let `who` do `what` and return the answer; raises ClientError with Supabase's code and message."""
        number = next(self._numbers)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        request = {"id": number, "who": who, "do": what, **given}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            await self._process.stdin.drain()
            return await asyncio.wait_for(future, _ANSWER_SECONDS)
        except TimeoutError:
            raise ClientError("no_answer", f"{what} was not answered within {_ANSWER_SECONDS} s.") from None
        except ConnectionError:
            raise self._gone() from None
        finally:
            self._waiting.pop(number, None)

    async def read_answers(self) -> None:
        """Hand every answer to who asked, until the process ends; then all who still wait get ClientError."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            if "told" in answer:
                self.told(answer["told"])
                continue
            future = self._waiting.get(answer["id"])
            if future is None or future.done():
                continue
            if "error" in answer:
                future.set_exception(ClientError(**answer["error"]))
            else:
                future.set_result(answer.get("ok"))
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(self._gone())

    def _gone(self) -> ClientError:
        said = self._log.read_text(errors="replace")[-1000:].strip()
        return ClientError("client_ended", f"The supabase-js client ended by itself. Its last lines:\n{said}")


@asynccontextmanager
async def connected(stack: Stack, readable: Path, log: Path) -> AsyncIterator[Client]:
    """Run the clients against `stack`; they may read below `readable` and reach its port, and nothing else."""
    argv = deno.command(
        _CLIENT, f"--allow-net=127.0.0.1:{stack.server.port}", "--allow-env", f"--allow-read={readable}"
    )
    keys = {"SUPABASE_URL": stack.api_url, "SUPABASE_PUBLISHABLE_KEY": stack.publishable_key}
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *argv, env=deno.environment(keys), cwd=deno.REPOSITORY, limit=_ANSWER_BYTES, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
    client = Client(process, log)
    reader = asyncio.create_task(client.read_answers())
    try:
        yield client
    finally:
        # Killed rather than asked: nothing of worth is in it, and Ctrl-C must not wait.
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reader
