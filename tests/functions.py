"""Edge functions, each in a Deno of its own, as they are deployed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from local import deno

DIRECTORY = deno.REPOSITORY / "supabase" / "functions"


@asynccontextmanager
async def serving(name: str, **settings: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run one function with these environment variables; gives its address and its process."""
    process = await asyncio.create_subprocess_exec(
        *deno.command(DIRECTORY / name / "index.ts", "--allow-net=127.0.0.1", "--allow-env"),
        env=deno.environment({**settings, "DENO_SERVE_ADDRESS": "tcp:127.0.0.1:0", "DENO_LOG": "info"}),
        cwd=deno.REPOSITORY, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            address = await _address(process)
        yield address + name, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process) -> str:
    """End a function and return what it wrote since it was ready."""
    process.kill()
    assert process.stdout is not None
    return (await process.stdout.read()).decode()


async def _address(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    seen = ""
    while line := (await process.stdout.readline()).decode():
        seen += line
        if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
            return found.group()
    raise AssertionError(f"the function did not start: {seen}")
