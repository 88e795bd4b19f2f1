"""The local embedding model beside the stack: `sluice embeddings-server` as a child that ends with us."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from local import child, deno
from local.install import MODELS

_READY_SECONDS = 60


@asynccontextmanager
async def embedding(log: Path) -> AsyncIterator[str]:
    """Serve the local model on a free port of loopback; gives the URL that SLUICE_EMBEDDINGS_URL wants.

    Raises StackError with the log's last lines when it does not become ready.
    """
    environment = deno.environment({"PYTHONPATH": str(deno.REPOSITORY), "SLUICE_MODEL_DIR": str(MODELS)})
    argv = [sys.executable, "-P", "-m", "worker", "embeddings-server", "--port", "0", "--until-stdin-ends"]
    async with child.ready("The local embedding model", argv, environment, log, seconds=_READY_SECONDS) as (_, said):
        yield str(said["url"])
