"""A worker beside the local stack: `sluice worker` as a child process that ends with the one that started it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path

from local import child, deno
from local.errors import StackError
from local.install import MODELS
from local.stack import Stack

# What SIGTERM may take: the drain, then the connections. Past that it is killed, and its leases run out.
DRAIN_SECONDS = 2
_STOP_SECONDS = DRAIN_SECONDS + 8


class Worker:
    """A running worker; made by `working`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path | None) -> None:
        self._log = log
        self._process = process

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def ended(self) -> None:
        """Wait until the worker ends by itself, which it should not, and raise StackError with its last words."""
        status = await self._process.wait()
        said = f" Its last lines:\n{self._log.read_text(errors='replace')[-1500:].strip()}" if self._log else ""
        raise StackError(f"The worker ended with exit status {status}.{said}")


@asynccontextmanager
async def working(
    stack: Stack, log: Path | None = None, *, module: str = "worker", **settings: str
) -> AsyncIterator[Worker]:
    """Run a worker on `stack` and stop it at the end; it hands back what it has not finished.

    It writes to `log`, or where we do. `settings` are SLUICE_ variables; those of our own environment hold too.
    `module` is another program that takes the command `worker`.
    """
    ours = {name: value for name, value in os.environ.items() if name.startswith("SLUICE_")}
    environment = deno.environment(
        {"SLUICE_MODEL_DIR": str(MODELS), "SLUICE_DRAIN_SECONDS": str(DRAIN_SECONDS), **ours, **settings}
        | stack.environment()
        | {"PYTHONPATH": str(deno.REPOSITORY), "PYTHONUNBUFFERED": "1"}
    )
    with log.open("ab") if log else nullcontext() as stream:
        # A session of its own: Ctrl-C is for us, and the worker is then stopped in order.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", module, "worker", cwd=deno.REPOSITORY, env=environment,
            stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
    try:
        yield Worker(process, log)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
        await child.gone(process, _STOP_SECONDS)
