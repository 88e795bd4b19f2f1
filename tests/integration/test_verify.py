"""`sluice verify` on a running target: what passes, and that each thing that is wrong is found and named."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from local import deno
from tests.verifying import LARGE, SMALL, Proving, acceptance, proving
from worker.operate.erase import erase_tenant
from worker.operate.verify.compare import compare
from worker.operate.verify.run import Run
from worker.pipeline.fetch import ObjectStore


@pytest.fixture(scope="module")
async def target(temporary_directory: Path) -> AsyncIterator[Proving]:
    """A target for this module's runs, with policies and a queue that tests may break and mend."""
    acceptance()
    async with proving(temporary_directory / "verify") as made:
        yield made


@pytest.fixture(scope="module")
async def clean(target: Proving) -> dict[str, Any]:
    """The report of a run with the small document on a sound target."""
    return await target.run(acceptance()[0])


def _failed(report: dict[str, Any]) -> list[str]:
    return [check["name"] for check in report["checks"] if check["verdict"] == "failed"]


@pytest.mark.timeout(300)
def test_both_acceptance_documents_pass_every_check(tmp_path: Path) -> None:
    out = tmp_path / "report.json"

    done = subprocess.run(
        [deno.REPOSITORY / "scripts" / "verify", "--json", "--out", out, *acceptance()],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ok"] is True
    assert told["acceptance"] == "whole"
    assert {check["verdict"] for check in told["checks"]} == {"passed"}
    assert len(told["checks"]) > 50
    pages = {document["sha256"]: document["counts"]["pages"] for document in told["documents"]}
    assert pages == {SMALL.sha256: 1, LARGE.sha256: 232}
    assert all(d["counts"]["chunks"] == d["counts"]["vectors"] > 1 for d in told["documents"])
    assert told["left"] == {"rows": {}, "users": [], "problems": []}
    assert told["versions"]["migration"] == _newest_migration()
    assert len(told["versions"]["git_sha"]) == 40
    kept = json.loads(out.read_text())
    assert {len(d["chunks"]) == d["counts"]["chunks"] for d in kept["documents"]} == {True}
    assert 5 < len(kept["log"]) <= 200
    assert "complete" in kept["log"][-1] or "complete" in "".join(kept["log"])
    assert "sb_secret_" not in out.read_text()
    assert out.with_suffix(".md").read_text().startswith("# Verification ")


def _newest_migration() -> str:
    files = sorted((deno.REPOSITORY / "supabase" / "migrations").glob("*.sql"))
    return files[-1].name.split("_")[0]


async def test_two_independent_runs_compare_without_a_difference(target: Proving, clean: dict[str, Any]) -> None:
    again = await target.run(acceptance()[0])

    parity = compare(clean, again)

    assert _failed(clean) == _failed(again) == []
    assert [row for row in parity.rows if row.verdict == "differs"] == []
    assert parity.good
    assert {"object", "page hashes", "chunk hashes", "chunk places", "vectors"} <= {row.what for row in parity.rows}


async def _alter_a_chunk(run: Run, target: Proving) -> None:
    # One letter of the text; its length and its hash stay, as a careless repair would leave them.
    await target.admin.execute(
        "update public.chunks set content = 'X' || substr(content, 2) where ordinal = 1 and document_id = $1",
        run.documents[0].id,
    )


async def _alter_a_byte(run: Run, target: Proving) -> None:
    whole = run.documents[0].given.content
    (kept,) = [
        path
        for path in (target.stack.directory / "storage").rglob("*")
        if path.is_file() and path.read_bytes() == whole
    ]
    kept.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])


async def _alter_a_vector(run: Run, target: Proving) -> None:
    # One of its 384 numbers, by a tenth.
    await target.admin.execute(
        "update ingest.embeddings e set embedding ="
        " ('[' || (v.a[1] + 0.1)::text || ',' || array_to_string(v.a[2:], ',') || ']')::extensions.halfvec"
        " from public.chunks c, lateral ("
        "   select string_to_array(trim(both '[]' from o.embedding::text), ',')::real[] as a from ingest.embeddings o"
        "    where o.tenant_id = c.tenant_id and o.content_sha256 = c.content_sha256) v"
        " where c.document_id = $1 and c.ordinal = 0"
        "   and e.tenant_id = c.tenant_id and e.content_sha256 = c.content_sha256",
        run.documents[0].id,
    )


@pytest.mark.parametrize(
    ("alter", "checks", "difference"),
    [
        (_alter_a_chunk, ["chunks.slices", "chunks.hashes"], ("chunk hashes", "1 other: chunk 1")),
        (_alter_a_byte, ["object.bytes"], ("object", None)),
        (_alter_a_vector, ["vectors.again"], ("vectors", "1 other: vector 0")),
    ],
)
async def test_what_was_altered_on_purpose_is_the_one_difference(
    target: Proving, clean: dict[str, Any], alter: Any, checks: list[str], difference: tuple[str, str | None]
) -> None:
    altered = await target.run(acceptance()[0], published=lambda run: alter(run, target))

    parity = compare(clean, altered)

    assert set(checks) <= set(_failed(altered))
    what, told = difference
    (row,) = parity.differences
    assert (row.what, row.subject) == (what, SMALL.name)
    assert told is None or row.b == told
    assert not parity.good
    assert altered["left"]["rows"] == {}


@pytest.mark.parametrize("name", [SMALL.name, "other.pdf"])
async def test_a_stand_in_is_refused_before_anything_is_made(target: Proving, tmp_path: Path, name: str) -> None:
    before = await target.counts()
    stand_in = tmp_path / name
    stand_in.write_bytes(acceptance()[0].read_bytes()[:-1] + b"\r")

    process = await target.start(str(stand_in), str(acceptance()[1]), "--json")
    out, said = await process.communicate()

    assert process.returncode == 2
    assert out == b""
    assert ("is a stand-in" in said.decode()) == (name == SMALL.name)
    assert "nothing was uploaded" in " ".join(said.decode().split())
    assert await target.counts() == before


async def test_a_document_given_twice_is_wrong_usage(target: Proving) -> None:
    process = await target.start(str(acceptance()[0]), str(acceptance()[0]))
    _, said = await process.communicate()

    assert process.returncode == 2
    assert "given already" in " ".join(said.decode().split())


@pytest.mark.parametrize(
    ("wrong", "status", "told"),
    [
        ({"SUPABASE_URL": "nonsense"}, 1, "The client refuses SUPABASE_URL"),
        ({"SUPABASE_PUBLISHABLE_KEY": "sb_publishable_of_another_project"}, 1, "was refused: 401"),
        ({"DATABASE_URL": ""}, 2, "DATABASE_URL: is not set"),
        ({"SUPABASE_PUBLISHABLE_KEY": ""}, 2, "SUPABASE_PUBLISHABLE_KEY"),
    ],
)
async def test_wrong_settings_are_told_and_nothing_is_made(
    target: Proving, wrong: dict[str, str], status: int, told: str
) -> None:
    before = await target.counts()

    process = await target.start(str(acceptance()[0]), "--out", "wrong.json", **wrong)
    out, said = await process.communicate()

    assert process.returncode == status, said.decode()
    assert told in " ".join((out + said).decode().split())
    assert "Traceback" not in said.decode()
    assert await target.counts() == before


async def test_local_refuses_a_project_elsewhere(target: Proving) -> None:
    process = await target.start(str(acceptance()[0]), "--target", "local", SUPABASE_URL="https://abc.example.com")
    _, said = await process.communicate()

    assert process.returncode == 2
    assert "SUPABASE_URL is not on this machine" in " ".join(said.decode().split())


async def test_a_run_leaves_no_row_no_file_and_no_user(target: Proving) -> None:
    before = await target.counts()

    report = await target.run(acceptance()[0])

    assert _failed(report) == []
    assert await target.counts() == before


@pytest.mark.parametrize(
    ("policy", "checks"),
    [
        ("on public.chunks for select to authenticated using (true)", ["isolation.tables", "isolation.search"]),
        ("on public.job_events for select to authenticated using (true)", ["isolation.tables"]),
        ("on storage.objects for all to authenticated using (true) with check (true)", ["isolation.storage"]),
    ],
)
async def test_what_a_wrong_policy_shows_a_stranger_is_found(target: Proving, policy: str, checks: list[str]) -> None:
    await target.admin.execute(f"create policy broken {policy}")
    try:
        report = await target.run(acceptance()[0])
    finally:
        await target.admin.execute(f"drop policy broken {policy.split(' for ')[0]}")

    # A chunk that a stranger sees is not a hit of theirs: search names the tenants itself, besides the policies.
    found = [(check["name"], check["subject"]) for check in report["checks"] if check["verdict"] == "failed"]
    assert (checks[0], "stranger") in found
    assert {name for name, _ in found} <= set(checks)
    assert report["left"]["rows"] == {}


@pytest.mark.parametrize("moment", ["Signing up", "Waiting until", "Storing twice"])
async def test_ctrl_c_removes_what_was_made_until_then(target: Proving, moment: str) -> None:
    before = await target.counts()
    process = await target.start(str(acceptance()[0]), "--out", "interrupted.json")
    assert process.stderr is not None
    said = ""
    while moment not in said:
        line = await process.stderr.readline()
        assert line, said
        said += line.decode()

    process.send_signal(signal.SIGINT)
    out, _ = await process.communicate()

    assert process.returncode == 130, out
    assert "Interrupted." in out.decode()
    assert await target.counts() == before
    assert json.loads((target.directory / "interrupted.json").read_text())["interrupted"] is True


async def test_with_the_workers_login_the_history_that_stays_is_told(target: Proving) -> None:
    report = await target.run(acceptance()[0], login="worker")

    assert _failed(report) == []
    (left,) = [check for check in report["checks"] if check["name"] == "cleanup.left"]
    assert left["verdict"] == "skipped"
    assert "sluice erase" in left["seen"]
    assert report["left"]["rows"]["public.jobs"] > 0
    assert {"public.documents", "public.chunks", "storage.objects"}.isdisjoint(report["left"]["rows"])
    await _erase(target, report["left"]["users"])


async def _erase(target: Proving, tenants: list[str]) -> None:
    from worker.db.pool import Database

    db, store = await Database.open(target.stack.database_url, size=1), None
    try:
        store = ObjectStore(target.stack.api_url, target.stack.secret_key)
        for tenant in tenants:
            await erase_tenant(db, store, UUID(tenant))
        await db.fetchval("remove_verify_users", [UUID(tenant) for tenant in tenants])
    finally:
        if store is not None:
            await store.close()
        await db.close()


async def test_without_a_worker_at_it_the_run_fails_in_time_and_cleans_up(target: Proving) -> None:
    before = await target.counts()
    await target.admin.execute("select ingest.pause_queue('ingest')")
    try:
        report = await asyncio.wait_for(target.run(acceptance()[0], seconds=1), 60)
    finally:
        await target.admin.execute("select ingest.resume_queue('ingest')")

    assert _failed(report) == ["run.finished"]
    assert "not searchable after 1 s" in str(report["checks"])
    assert await target.counts() == before


async def test_a_run_removes_its_own_users_only(target: Proving) -> None:
    other = "6f1b7f0e-0000-4000-8000-000000000001"
    await target.admin.execute("insert into auth.users (id, email) values ($1, 'somebody@example.com')", UUID(other))

    removed = await target.admin.fetchval("select ingest.remove_verify_users($1)", [UUID(other)])

    assert removed == 0
    assert await target.admin.fetchval("select count(*) from auth.users where id = $1", UUID(other)) == 1
    await target.admin.execute("delete from auth.users where id = $1", UUID(other))
    await target.admin.execute("delete from public.tenants where id = $1", UUID(other))
