"""Real Postgres, shaped and migrated, for every test: one cluster a session, one database a test.

Schemas, tables and default privileges are copied by `create database … template`; roles belong to the
cluster. With pytest-xdist each worker has a cluster and a stack of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from local import migrations, shape
from local.postgres import SUPERUSER, Cluster
from local.secrets import WORKER_ROLE, Secrets
from local.stack import Stack
from tests import network

TEMPLATE = "template_sluice"
_numbers = count(1)

network.install()
# A shell starts what runs behind it with Ctrl-C ignored, and its children with it: their tests press it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Of onnxruntime, which tests also load without the worker's embedder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def no_network(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail every test whose process reaches beyond loopback, also where the code under test swallowed the refusal."""
    network.refused.clear()
    network.allowed = request.node.get_closest_marker("live") is not None
    yield
    network.allowed = False
    if network.refused:
        pytest.fail(f"the test went beyond loopback: {', '.join(network.refused)}")


Counted = Callable[..., None]


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Counted:
    """Say what a test went through, `counted("names", 500)`; the run ends with the sums of what passed."""
    return lambda what, number=1: record_property(f"counted {what}", number)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    sums: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, number in report.user_properties:
            if name.startswith("counted "):
                sums[name.removeprefix("counted ")] += number
    for what, number in sums.items():
        terminalreporter.write_line(f"{what}: {number:,}")


@pytest.fixture(scope="session")
def secrets() -> Secrets:
    """The passwords of the session's cluster."""
    return Secrets.generate()


@pytest.fixture(scope="session")
def temporary_directory() -> Iterator[Path]:
    """A directory for stacks, on a disk: Deno opens nothing under /dev without all permissions.

    It is not one of pytest's own, which would be kept after the run.
    """
    directory = Path(tempfile.mkdtemp(prefix="sluice-stacks-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def memory_directory() -> Iterator[Path]:
    """A directory for clusters alone, in memory where there is room."""
    directory = Path(tempfile.mkdtemp(prefix="sluice-tests-", dir=_memory()))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _memory() -> Path | None:
    """Return a memory file system with room for clusters, or None for the usual place.

    A database is some 350 files: a copy takes 15 ms in memory, and between 100 and 400 ms on a disk.
    """
    shared = Path("/dev/shm")
    try:
        return shared if shutil.disk_usage(shared).free > 2 * 1024**3 and os.access(shared, os.W_OK) else None
    except OSError:
        return None


@pytest.fixture(scope="session")
def cluster(memory_directory: Path, secrets: Secrets) -> Iterator[Cluster]:
    """A running, bare Postgres; the platform's roles are made with `template`."""
    made = Cluster(memory_directory / "postgres", secrets.passwords[SUPERUSER], durable=False)
    made.create()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="session")
async def template(cluster: Cluster, secrets: Secrets) -> AsyncIterator[asyncpg.Connection]:
    """The template database, shaped, migrated by the CLI; yields the connection that copies it."""
    maintenance = await asyncpg.connect(cluster.admin_url())
    await shape.make_roles(maintenance, secrets.passwords)
    await maintenance.execute(f"create database {TEMPLATE}")
    admin = await asyncpg.connect(cluster.admin_url(TEMPLATE))
    await shape.make_schemas(admin)
    await admin.close()
    postgres = cluster.url("postgres", secrets.passwords["postgres"], TEMPLATE)
    await migrations.push(cluster.admin_url(TEMPLATE), postgres)
    await shape.set_password(maintenance, WORKER_ROLE, secrets.passwords[WORKER_ROLE])
    await maintenance.execute(f"alter database {TEMPLATE} is_template true allow_connections false")
    yield maintenance
    await maintenance.close()


class Database:
    """A test's own database: migrated, empty, and gone after the test."""

    def __init__(self, name: str, cluster: Cluster, secrets: Secrets) -> None:
        self.name = name
        self.cluster = cluster
        self._secrets = secrets
        self._connections: list[asyncpg.Connection] = []

    def url(self, role: str = "postgres") -> str:
        """Return the URL with which `role` (a role that logs in) connects to this database."""
        return self.cluster.url(role, self._secrets.passwords[role], self.name)

    async def connect(self, role: str = "postgres") -> asyncpg.Connection:
        """Return a new connection as `role`, closed after the test."""
        connection = await asyncpg.connect(self.url(role))
        self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Drop every connection, politely or not."""
        for connection in self._connections:
            connection.terminate()


@pytest.fixture
async def database(template: asyncpg.Connection, cluster: Cluster, secrets: Secrets) -> AsyncIterator[Database]:
    """A fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    await template.execute(f"create database {name} template {TEMPLATE} strategy file_copy")  # 15 ms; wal_log: 23 ms
    await shape.open_database(template, name)
    made = Database(name, cluster, secrets)
    yield made
    await made.close()
    await template.execute(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
async def stack(temporary_directory: Path) -> AsyncIterator[Stack]:
    """The whole local Supabase on a free port, shared by the session: make users and objects of your own."""
    async with Stack(temporary_directory / "stack", durable=False) as running:
        yield running
