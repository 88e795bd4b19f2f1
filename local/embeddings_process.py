"""The local embedding model beside the stack: `sluice embeddings-server` as a child that ends with us."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from local import deno
from local.errors import StackError
from local.install import MODELS

_READY_SECONDS = 60
_STOP_SECONDS = 5


@asynccontextmanager
async def embedding(log: Path) -> AsyncIterator[str]:
    """Serve the local model on a free port of loopback; gives the URL that SLUICE_EMBEDDINGS_URL wants.

    Raises StackError with the log's last lines when it does not become ready.
    """
    environment = deno.environment({"PYTHONPATH": str(deno.REPOSITORY), "SLUICE_MODEL_DIR": str(MODELS)})
    with log.open("ab") as stream:
        # A session of its own: Ctrl-C is for us. It ends with its standard input, so it cannot outlive us.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "worker", "embeddings-server", "--port", "0", "--until-stdin-ends",
            cwd=deno.REPOSITORY, env=environment, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        yield await _ready(process, log)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
        finally:
            # Ctrl-C may cancel the wait as well: another child fails by it first, and then we are cancelled here.
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _ready(process: asyncio.subprocess.Process, log: Path) -> str:
    assert process.stdout is not None
    line = b""
    with contextlib.suppress(TimeoutError):
        line = await asyncio.wait_for(process.stdout.readline(), _READY_SECONDS)
    if not line:
        said = log.read_text(errors="replace")[-2000:].strip()
        raise StackError(f"The local embedding model did not start. What it wrote to {log}:\n{said}")
    return str(json.loads(line)["url"])
