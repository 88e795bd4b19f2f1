"""The whole embedded Supabase: Postgres, the migrations, and the server on one port.

A stack keeps everything in one directory and is started there as often as one likes:

    postgres/     the cluster            secrets.json  passwords and keys, mode 0600
    storage/      files of the buckets   shape         which bootstrap made the cluster
    server.log    what Deno said         lock          who holds the directory
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import asyncpg

from local import deno, migrations, shape
from local.errors import StackError
from local.lock import Lock
from local.postgres import HOST, Cluster
from local.secrets import WORKER_ROLE, Secrets
from local.server_process import Server, running

DEFAULT_DIRECTORY = deno.REPOSITORY / ".sluice" / "stack"
DEFAULT_PORT = 54321
_UNFINISHED = "unfinished"
T = TypeVar("T")


class Stack:
    """An embedded Supabase in `directory`; `async with` starts and stops it.

    `port` is the API's on 127.0.0.1, 0 for a free one. `durable=False` is for tests: faster, and lost when the
    machine crashes. `project` holds the folder `supabase` with migrations and functions. `largest_upload` in bytes is
    the project's limit, which no bucket exceeds; without it 50 MB, as a new project has it. `functions` are variables
    for the edge functions, as `supabase secrets set` gives them on hosted projects. A `bare` one applies no migrations,
    as a project is before its first deployment; the server sees what is deployed then after `restart_server`.
    """

    def __init__(
        self,
        directory: Path = DEFAULT_DIRECTORY,
        *,
        port: int = 0,
        durable: bool = True,
        project: Path = deno.REPOSITORY,
        largest_upload: int | None = None,
        functions: Mapping[str, str] | None = None,
        bare: bool = False,
    ) -> None:
        self.directory = directory.resolve()
        self.lock = Lock(self.directory / "lock")
        self._port = port
        self._durable = durable
        self._project = project
        self._largest_upload = largest_upload
        self._bare = bare
        self._functions = {"SLUICE_CORS_ORIGINS": "*", **(functions or {})}
        self._running: AsyncExitStack | None = None
        self._cluster: Cluster | None = None
        self._serving = AsyncExitStack()
        self._server: Server | None = None
        self._secrets: Secrets | None = None

    async def start(self) -> None:
        """Bring everything up: make the cluster where there is none, apply new migrations, then serve.

        Raises StackError saying what to do; whatever was started is stopped then.
        """
        async with AsyncExitStack() as started:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock.take()
            started.callback(self.lock.release)
            self._secrets = Secrets.kept_in(self.directory / "secrets.json")
            await self._start_cluster(started)
            if not self._bare:
                await migrations.push(self.admin_url, self.database_url, self._project)
                await self._let_worker_log_in()
            (self.directory / "storage").mkdir(exist_ok=True)
            self._serving = await started.enter_async_context(AsyncExitStack())
            self._server = await self._serving.enter_async_context(self._serve(self._port))
            self.lock.say(self.facts())
            self._running = started.pop_all()

    async def stop(self) -> None:
        """Stop everything in reverse order; without effect where nothing runs."""
        if self._running is not None:
            running_, self._running = self._running, None
            await running_.aclose()

    async def restart_server(self) -> None:
        """Stop the Deno process, or bury it, and start another on the same port.

        After a crash of Postgres this is needed: postgres.js 3.4.9 may then end the process, or never answer again.
        """
        port = self.server.port
        await self._serving.aclose()
        self._server = await self._serving.enter_async_context(self._serve(port))

    async def ended(self) -> None:
        """Wait until the server ends by itself, which it should not, and raise StackError then."""
        status = await self.server.ended()
        raise StackError(f"The local server ended with exit status {status}. Its log: {self.server.log}")

    async def __aenter__(self) -> Stack:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def server(self) -> Server:
        """The Deno process."""
        return _started(self._server)

    @property
    def cluster(self) -> Cluster:
        """The Postgres cluster."""
        return _started(self._cluster)

    @property
    def secrets(self) -> Secrets:
        """Every password and key."""
        return _started(self._secrets)

    @property
    def api_url(self) -> str:
        """SUPABASE_URL: what clients are given."""
        return f"http://{HOST}:{self.server.port}"

    @property
    def publishable_key(self) -> str:
        """The key of browsers and apps; row-level security applies."""
        return self.secrets.publishable_key

    @property
    def secret_key(self) -> str:
        """The key of servers; acts as service_role."""
        return self.secrets.secret_key

    @property
    def jwt_secret(self) -> str:
        """What signs users' tokens (HS256)."""
        return self.secrets.jwt_secret

    @property
    def database_url(self) -> str:
        """The database as `postgres`, which owns what migrations make and is no superuser."""
        return self._url("postgres")

    @property
    def worker_database_url(self) -> str:
        """The database as `ingest_worker`."""
        return self._url(WORKER_ROLE)

    @property
    def admin_url(self) -> str:
        """The database as the superuser `supabase_admin`, which hosted projects do not give away."""
        return self.cluster.admin_url()

    def environment(self) -> dict[str, str]:
        """Return the variables that a worker needs to work on this stack."""
        return {
            "DATABASE_URL": self.worker_database_url,
            "SUPABASE_URL": self.api_url,
            "SUPABASE_SECRET_KEY": self.secret_key,
            "SUPABASE_PUBLISHABLE_KEY": self.publishable_key,
        }

    def facts(self) -> dict[str, str]:
        """Return what a person at this machine is told: addresses and keys."""
        return {
            "api_url": self.api_url,
            "publishable_key": self.publishable_key,
            "secret_key": self.secret_key,
            "database_url": self.database_url,
            "worker_database_url": self.worker_database_url,
            "directory": str(self.directory),
        }

    def _url(self, role: str) -> str:
        return self.cluster.url(role, self.secrets.passwords[role])

    async def _start_cluster(self, started: AsyncExitStack) -> None:
        marker = self.directory / "shape"
        passwords = self.secrets.passwords
        cluster = Cluster(self.directory / "postgres", passwords["supabase_admin"], durable=self._durable)
        made_by = marker.read_text().strip() if marker.exists() else None
        if made_by == _UNFINISHED:  # a first start was interrupted: nothing of worth is in it
            stop_leftover(self.directory)
            shutil.rmtree(cluster.directory, ignore_errors=True)
            made_by = None
        if cluster.exists and made_by != shape.version():
            raise StackError(
                f"The database in {self.directory} was made by another version of the local stack "
                f"({made_by or 'unknown'}; this is {shape.version()}). It can only be made anew, without its contents: "
                f"python -m local reset --directory {self.directory}"
            )
        new = not cluster.exists
        if new:
            marker.write_text(_UNFINISHED)
        cluster.create()
        self._cluster = cluster
        started.callback(cluster.stop)
        cluster.start()
        if new:
            admin = await asyncpg.connect(cluster.admin_url())
            try:
                await shape.make_roles(admin, passwords)
                await shape.make_schemas(admin)
            finally:
                await admin.close()
            marker.write_text(shape.version())

    async def _let_worker_log_in(self) -> None:
        admin = await asyncpg.connect(self.admin_url)
        try:
            if await admin.fetchval("select true from pg_roles where rolname = $1", WORKER_ROLE):
                await shape.set_password(admin, WORKER_ROLE, self.secrets.passwords[WORKER_ROLE])
        finally:
            await admin.close()

    def _serve(self, port: int) -> AbstractAsyncContextManager[Server]:
        return running(
            self._server_settings(),
            port=port,
            storage=self.directory / "storage",
            functions=self._project / "supabase" / "functions",
            log=self.directory / "server.log",
        )

    def _server_settings(self) -> dict[str, str]:
        return (
            self._functions
            | {
                "SLUICE_API_DATABASE_URL": self._url("lite_api"),
                "SLUICE_STORAGE_DATABASE_URL": self._url("supabase_storage_admin"),
                "SLUICE_REALTIME_DATABASE_URL": self._url("realtime_bridge"),
                "SLUICE_JWT_SECRET": self.jwt_secret,
                "SLUICE_PUBLISHABLE_KEY": self.publishable_key,
                "SLUICE_SECRET_KEY": self.secret_key,
            }
            | ({"SLUICE_STORAGE_FILE_SIZE_LIMIT": str(self._largest_upload)} if self._largest_upload else {})
        )


def stop_leftover(directory: Path) -> bool:
    """Stop the Postgres that a killed stack left behind in `directory`, and say whether there was one."""
    cluster = Cluster(directory / "postgres", "")
    if cluster.pid is None:
        return False
    cluster.stop()
    return True


def remove(directory: Path) -> None:
    """Remove a stopped stack's data, and nothing else that may be in the directory."""
    for name in ("postgres", "storage"):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    for name in ("shape", "secrets.json", "server.log", "embeddings.log", "lock"):
        (directory / name).unlink(missing_ok=True)


def _started(value: T | None) -> T:
    if value is None:
        raise StackError("The stack is not started.")
    return value
