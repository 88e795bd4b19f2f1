"""A local target that `sluice verify` can prove, and runs on it in this process or as a person starts them."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from local import deno
from local.embeddings_process import embedding
from local.install import MODELS
from local.stack import Stack
from local.worker_process import working
from worker.db.pool import Database
from worker.operate.verify.documents import ACCEPTANCE, identify
from worker.operate.verify.person import Target
from worker.operate.verify.run import Asked, Run
from worker.pipeline.embed.local import LocalEmbedder
from worker.pipeline.fetch import ObjectStore

Hook = Callable[[Run], Awaitable[None]]
SMALL, LARGE = ACCEPTANCE
FOLDER = Path(os.environ.get("SLUICE_ACCEPTANCE", deno.REPOSITORY.parent / "shared" / "acceptance"))
MISSING = f"The acceptance documents are not in {FOLDER}. SLUICE_ACCEPTANCE names another folder."
# What a run may leave: our audit and Auth's own say what was done, and heartbeats and limits are not of a tenant.
_NOT_OF_A_RUN = (
    "ingest.audit", "auth.audit_log_entries", "ingest.workers", "ingest.probes", "ingest.rate_limits", "ingest.alerts",
)  # fmt: skip


def acceptance() -> list[Path]:
    """Return the two documents, or skip the test: they are beside the repository, not in it."""
    files = [FOLDER / known.name for known in ACCEPTANCE]
    if not all(file.is_file() for file in files):
        pytest.skip(MISSING)
    return files


@dataclass
class Proving:
    """A running stack with a worker and the edge function `search`."""

    stack: Stack
    directory: Path
    embedder: LocalEmbedder
    admin: asyncpg.Connection

    async def run(
        self, *files: Path, published: Hook | None = None, login: str = "owner", seconds: float = 100
    ) -> dict[str, Any]:
        """Prove the target with `files` in this process; `login` is whose database URL is given."""
        url = self.stack.database_url if login == "owner" else self.stack.worker_database_url
        target = Target(self.stack.api_url, self.stack.publishable_key, self.stack.secret_key)
        asked = Asked(secrets.token_hex(5), target, "local", seconds, 256, secrets=(self.stack.secret_key,))
        async with AsyncExitStack() as opened:
            db = await Database.open(url, size=2)
            opened.push_async_callback(db.close)
            store = ObjectStore(self.stack.api_url, self.stack.secret_key)
            opened.push_async_callback(store.close)
            run = Run(asked, identify(files), db, store, self.embedder, self.directory, lambda _text: None)
            if published is not None:
                run.published = published
            return await run.run()

    async def counts(self) -> dict[str, int]:
        """Count the rows of every table of ours, Auth's and Storage's, and the files that Storage keeps."""
        tables = await self.admin.fetch(
            "select c.oid::regclass::text as name, n.nspname || '.' || c.relname as full_name from pg_class c"
            " join pg_namespace n on n.oid = c.relnamespace"
            " where n.nspname in ('public', 'ingest', 'auth', 'storage') and c.relkind in ('r', 'p')"
            " and not c.relispartition"
        )
        found = {
            row["full_name"]: await self.admin.fetchval(f"select count(*) from {row['name']}")
            for row in tables
            if row["full_name"] not in _NOT_OF_A_RUN
        }
        files = [path for path in (self.stack.directory / "storage").rglob("*") if path.is_file()]
        return found | {"files": len(files)}

    def environment(self) -> dict[str, str]:
        """Return what `sluice verify run` reads."""
        return {**os.environ, **self.stack.environment(), "DATABASE_URL": self.stack.database_url,
                "SLUICE_MODEL_DIR": str(MODELS), "PYTHONPATH": str(deno.REPOSITORY)}  # fmt: skip

    async def start(self, *arguments: str, **environment: str) -> asyncio.subprocess.Process:
        """Start `sluice verify run` as a person does, in a session of its own; its lines come by its pipes."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "worker", "verify", "run", *arguments, cwd=self.directory,
            env=self.environment() | environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip


@asynccontextmanager
async def proving(directory: Path) -> AsyncIterator[Proving]:
    """Bring a target up in `directory` and take it down at the end."""
    directory.mkdir()
    async with AsyncExitStack() as started:
        url = await started.enter_async_context(embedding(directory / "embeddings.log"))
        stack = await started.enter_async_context(
            Stack(directory / "stack", durable=False, functions={"SLUICE_EMBEDDINGS_URL": url})
        )
        await started.enter_async_context(working(stack, directory / "worker.log"))
        embedder = LocalEmbedder(MODELS)
        started.push_async_callback(embedder.aclose)
        admin = await asyncpg.connect(stack.admin_url)
        started.push_async_callback(admin.close)
        yield Proving(stack, directory, embedder, admin)
