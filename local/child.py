"""Child processes: one that says when it is ready and ends with its standard input, and the end of any, in any case."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from local import deno
from local.errors import StackError

_STOP_SECONDS = 5


@asynccontextmanager
async def ready(
    name: str, argv: Sequence[str], environment: dict[str, str], log: Path, *, seconds: float
) -> AsyncIterator[tuple[Process, dict[str, Any]]]:
    """Run a program that ends with its standard input; gives it and the line of JSON that it prints when ready.

    What it says on stderr is appended to `log`. Raises StackError with the log's last lines when the program, `name`
    in the sentence, is not ready within `seconds`.
    """
    with log.open("ab") as stream:
        # A session of its own: Ctrl-C is for us.
        process = await asyncio.create_subprocess_exec(
            *argv, env=environment, cwd=deno.REPOSITORY, stdin=PIPE, stdout=PIPE, stderr=stream, start_new_session=True
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = b""
        with suppress(TimeoutError):
            line = await asyncio.wait_for(process.stdout.readline(), seconds)
        if not line:
            said = log.read_text(errors="replace")[-2000:].strip()
            raise StackError(f"{name} did not start. What it wrote to {log}:\n{said}")
        yield process, json.loads(line)
    finally:
        process.stdin.close()
        await gone(process, _STOP_SECONDS)


async def gone(process: Process, seconds: float) -> None:
    """Wait until a child that leads its session has ended; kill it and its children when `seconds` are not enough."""
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), seconds)
    finally:
        # Ctrl-C may cancel the wait as well: another child fails by it first, and then we are cancelled here.
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
