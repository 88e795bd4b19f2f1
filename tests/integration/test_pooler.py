"""The worker behind a real PgBouncer: what works through a transaction pooler, and what is noticed."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import cast
from uuid import uuid4

import asyncpg
import numpy as np
import pytest

from local.stack import Stack
from local.worker_process import working
from tests.conftest import Database as MigratedDatabase
from tests.database.project import LEASE, MODEL, Project, digest, vector_of
from tests.people import Person, handbook
from tests.people import Project as StackProject
from tests.pgbouncer import MISSING, PROGRAM, pgbouncer
from worker.db.connect import shares_backends
from worker.db.pool import Database
from worker.errors import Transient
from worker.model import Chunk, Claim, ModelId, ParseId
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.publish import publish
from worker.queue.listener import Listener, ListenPace
from worker.queue.source import Unheard

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

Pooled = Callable[..., str]


@pytest.fixture
def pooled() -> Iterator[Pooled]:
    """Give a URL that leads through a pooler in the given mode, with so many backends."""
    with ExitStack() as stack:

        def through(url: str, mode: str = "transaction", backends: int = 2) -> str:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-pooler-")))
            directory.chmod(0o755)
            return stack.enter_context(pgbouncer(directory, url, mode=mode, backends=backends))

        yield through


@pytest.mark.parametrize(("mode", "backends"), [("transaction", 1), ("transaction", 5), ("session", 5)])
async def test_a_pooler_on_any_port_is_noticed(
    database: MigratedDatabase, pooled: Pooled, mode: str, backends: int
) -> None:
    # Session mode too: its greeting looks the same, and DATABASE_POOLER=session says better.
    url = pooled(database.url("ingest_worker"), mode, backends)
    assert await shares_backends(url)
    assert not await shares_backends(url, "session")


async def test_a_direct_connection_is_not_taken_for_a_pooler(database: MigratedDatabase) -> None:
    url = database.url("ingest_worker")
    assert not await shares_backends(url)
    assert await shares_backends(url, "transaction")
    assert await shares_backends("postgres://somebody@db.example.org:6543/postgres")  # not asked: the port says it


@pytest.mark.parametrize("backends", [1, 3])
async def test_a_pooler_that_passes_the_greeting_on_is_noticed_by_its_sharing(
    database: MigratedDatabase, pooled: Pooled, backends: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = pooled(database.url("ingest_worker"), "transaction", backends)
    greeting = await asyncpg.connect(url, statement_cache_size=0)
    pid = await greeting.fetchval("select pg_backend_pid()")
    await greeting.close()
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda _self: pid)
    monkeypatch.setattr("worker.db.connect._PROBE_SECONDS", 0.5)

    assert await shares_backends(url)


async def ask(db: Database, times: int) -> int:
    """Ask named questions of the pool, many at a time; return how many failed."""
    answers = await asyncio.gather(*(db.fetch("active_model") for _ in range(times)), return_exceptions=True)
    assert all(isinstance(answer, list | Transient) for answer in answers)
    return sum(isinstance(answer, Transient) for answer in answers)


async def test_prepared_statements_fail_behind_a_transaction_pooler_and_ours_are_not_prepared(
    database: MigratedDatabase, pooled: Pooled
) -> None:
    url = pooled(database.url("ingest_worker"))
    wrong = await Database.open(url, size=8, pooler="session")
    right = await Database.open(url, size=8)

    assert not wrong.shared
    assert await ask(wrong, 200) > 0
    assert right.shared
    assert await ask(right, 200) == 0

    await wrong.close()
    await right.close()


async def carry(db: Database, sql: Project, row: asyncpg.Record) -> None:
    """Carry one claim from fetch to its publication with the worker's own calls."""
    claim = Claim(
        job_id=row["job_id"], number=row["claim"], document_id=row["document_id"], tenant_id=row["tenant_id"],
        generation=row["generation"], attempt=row["attempt"], max_attempts=row["max_attempts"], rescues=row["rescues"],
    )  # fmt: skip
    fence, texts = (claim.job_id, claim.number), [f"first {claim.job_id}", f"second {claim.job_id}"]
    await db.fetchrow("begin_fetch", *fence)
    parse = await db.fetchrow("begin_parse", *fence, digest(str(claim.job_id)), 5, "text/plain", "local", "1", "{}")
    assert parse is not None
    await db.fetchval(
        "store_parse", *fence, parse["parse_id"], claim.tenant_id, [1, 2], texts, "Title", "text/plain", []
    )
    offset, chunks = 0, []
    for number, text in enumerate(texts):
        end = offset + len(text)
        chunks.append(Chunk(number, number + 1, number + 1, offset, end, (), "", text, token_count=2))
        offset = end + 2
    vectors = np.array([vector_of(chunk.content) for chunk in chunks], np.float32)
    await Vectors(db, ModelId(MODEL)).store([(claim.tenant_id, chunk.content_sha256) for chunk in chunks], vectors)
    await publish(
        db, claim, chunks, model_id=ModelId(MODEL), parse_id=ParseId(parse["parse_id"]), title="Title", left="[]",
        detail={},
    )  # fmt: skip


async def test_documents_go_from_claim_to_publication_through_two_backends_many_at_a_time(
    sql: Project, database: MigratedDatabase, pooled: Pooled
) -> None:
    db = await Database.open(pooled(database.url("ingest_worker")), size=8)
    user = await sql.user()
    for number in range(24):
        await sql.upload(user, f"{number}.txt")
    # The temporary tables stay with a backend when its transaction ends: they are used in turn, and empty each time.
    rows = await db.fetch("claim_jobs", uuid4(), 24, LEASE, 100)
    assert len(rows) == 24
    await asyncio.gather(*(carry(db, sql, row) for row in rows))

    found = await sql.owner.fetchrow(
        "select count(*) filter (where state = 'ready') as ready, count(*) as documents,"
        " (select count(*) from public.chunks) as chunks, (select count(*) from ingest.leases) as leases,"
        " (select count(*) from public.chunks c join public.jobs j using (document_id)"
        "   where c.content not like '% ' || j.id) as strange from public.documents"
    )
    assert dict(found) == {"ready": 24, "documents": 24, "chunks": 48, "leases": 0, "strange": 0}
    assert (
        await sql.admin.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'sluice worker' and datname = $1",
            database.name,
        )
        <= 2
    )
    await db.close()


async def test_a_transaction_that_fails_leaves_no_rows_in_the_temporary_tables_of_its_backend(
    sql: Project, database: MigratedDatabase, pooled: Pooled
) -> None:
    db = await Database.open(pooled(database.url("ingest_worker"), backends=1), size=2)
    user = await sql.user()
    await sql.upload(user)
    (row,) = await db.fetch("claim_jobs", uuid4(), 1, LEASE, 100)

    async def fail() -> None:
        async with db.transaction() as session:
            await session.fetchval("prepare_incoming_embeddings")
            await session.copy("incoming_embeddings", ("content_sha256", "embedding"), [(b"x" * 32, None)])
            raise RuntimeError("in the middle")

    for _ in range(2):
        with pytest.raises(RuntimeError):
            await fail()
    await carry(db, sql, row)
    assert await sql.owner.fetchval("select count(*) from ingest.embeddings") == 2
    await db.close()


def deaf(url: str, db: Database) -> Listener:
    return Listener(db, url, name="DATABASE_URL", pace=ListenPace(proof=0.5, alive=30))


@pytest.mark.parametrize("backends", [1, 2, 5])
async def test_the_silence_of_listen_behind_a_transaction_pooler_is_noticed(
    database: MigratedDatabase, pooled: Pooled, backends: int
) -> None:
    url = pooled(database.url("ingest_worker"), backends=backends)
    db = await Database.open(url, size=2)
    with pytest.raises(Unheard, match="LISTEN is accepted and nothing arrives") as raised:
        await deaf(url, db).hear(lambda: pytest.fail("it heard something"), lambda: None)
    assert raised.value.for_long
    await db.close()


async def test_listen_behind_a_session_pooler_is_heard_what_the_transaction_pooler_told(
    sql: Project, database: MigratedDatabase, pooled: Pooled
) -> None:
    url = database.url("ingest_worker")
    db = await Database.open(pooled(url), size=2)
    hearing, woken = asyncio.Event(), asyncio.Event()
    listener = deaf(pooled(url, "session"), db)
    listening = asyncio.create_task(listener.hear(hearing.set, woken.set))
    async with asyncio.timeout(10):
        await hearing.wait()
        await sql.upload(await sql.user())
        await woken.wait()
        (row,) = await db.fetch("claim_jobs", uuid4(), 1, LEASE, 100)
        woken.clear()
        await db.fetch("release_jobs", [row["job_id"]], [row["claim"]], "worker_stopped")
        await woken.wait()
    listening.cancel()
    await asyncio.wait([listening])
    await db.close()


async def test_a_whole_worker_behind_a_transaction_pooler_makes_a_document_ready_and_says_how_it_is_woken(
    stack: Stack, temporary_directory: Path, project: StackProject, ada: Person, pooled: Pooled
) -> None:
    log = temporary_directory / "pooled-worker.log"

    class Pooled:
        def environment(self) -> dict[str, str]:
            return stack.environment() | {"DATABASE_URL": pooled(stack.environment()["DATABASE_URL"])}

    async with working(cast(Stack, Pooled()), log):
        path = await ada.upload("pooled.md", handbook(2), mime_type="text/markdown")
        assert (await project.settled(path, seconds=60))["state"] == "ready"
        # The local stack has no Realtime yet, so the last way remains.
        await project.until("select true as told", when=lambda _row: '"way"' in log.read_text())
    said = log.read_text()
    assert "leads through a transaction pooler" in said
    assert stack.environment()["SUPABASE_SECRET_KEY"] not in said
