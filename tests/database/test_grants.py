"""Who may do what, compared with the written list in grants.toml."""

from __future__ import annotations

import tomllib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from tests.callers import as_anonymous, as_service, as_user
from tests.database import catalogue
from tests.database.project import Project

WRITTEN: dict[str, dict[str, Any]] = tomllib.loads((Path(__file__).parent / "grants.toml").read_text())
EXPOSED = ("public",)


def as_somebody(connection: asyncpg.Connection) -> AbstractAsyncContextManager[None]:
    return as_user(connection, uuid4())


def name_of(signature: str) -> str:
    return signature.partition("(")[0]


async def test_every_function_has_its_line_and_every_line_its_function(project: Project) -> None:
    found = await catalogue.functions(project.owner)
    assert len(found) == len({name_of(signature) for signature in found})  # no overloads: a name is a line
    actual = {
        name_of(signature): {"definer": about["definer"], "execute": about["execute"]}
        for signature, about in found.items()
    }
    assert actual == {name: {"definer": False} | line for name, line in WRITTEN["functions"].items()}


@pytest.mark.parametrize("kind", ["tables", "sequences"])
async def test_every_table_and_sequence_has_its_line_and_every_line_its_own(project: Project, kind: str) -> None:
    found = await catalogue.relations(project.owner)
    actual = {
        name: about["grants"]
        for name, about in found.items()
        if (about["kind"] == "S") == (kind == "sequences") and not about["partition"]
    }
    assert actual == WRITTEN[kind]


async def test_a_table_or_function_without_a_line_is_noticed(project: Project) -> None:
    before = await catalogue.functions(project.owner), await catalogue.relations(project.owner)
    await project.owner.execute(
        "create function public.forgotten() returns void language sql security definer as '';"
        "create table public.forgotten (id bigint generated always as identity)"
    )
    functions = await catalogue.functions(project.owner)
    relations = await catalogue.relations(project.owner)
    assert functions.keys() - before[0].keys() == {"public.forgotten()"}
    assert relations.keys() - before[1].keys() == {"public.forgotten", "public.forgotten_id_seq"}
    # A hosted project gives both away, which is why they are revoked by name.
    assert {"PUBLIC", "anon", "authenticated"} <= set(functions["public.forgotten()"]["execute"])
    assert {"anon", "authenticated"} <= relations["public.forgotten"]["grants"].keys()
    assert not relations["public.forgotten"]["secured"]


async def test_everything_belongs_to_postgres_and_no_view_bypasses_policies(project: Project) -> None:
    for about in (await catalogue.functions(project.owner) | await catalogue.relations(project.owner)).values():
        assert about["owner"] == "postgres"
        assert about.get("kind") not in ("m", "f")
        assert about.get("kind") != "v" or "security_invoker=true" in about["options"]


async def test_row_level_security_is_on_for_every_table(project: Project) -> None:
    open_ = [
        name
        for name, about in (await catalogue.relations(project.owner)).items()
        if about["kind"] in "rp" and not about["secured"]
    ]
    assert open_ == []


async def test_partitions_are_reached_through_their_parent_only(project: Project) -> None:
    partitions = {name: a for name, a in (await catalogue.relations(project.owner)).items() if a["partition"]}
    assert len(partitions) >= 5
    assert all(name.startswith("ingest.") and about["grants"] == {} for name, about in partitions.items())


async def test_no_function_is_executable_by_everybody(project: Project) -> None:
    public = [
        name for name, about in (await catalogue.functions(project.owner)).items() if "PUBLIC" in about["execute"]
    ]
    assert public == []


async def test_every_function_pins_its_search_path(project: Project) -> None:
    for name, about in (await catalogue.functions(project.owner)).items():
        assert 'search_path=""' in about["settings"], name


async def test_no_definer_function_is_callable_through_the_api(project: Project) -> None:
    # The lints for it are missing from the CLI's advisors.
    definers = [name for name, about in (await catalogue.functions(project.owner)).items() if about["definer"]]
    assert len(definers) > 5
    assert [name for name in definers if name.partition(".")[0] in EXPOSED] == []


async def test_the_exposed_schemas_are_the_ones_that_were_looked_at(project: Project) -> None:
    config = tomllib.loads((Path(__file__).parents[2] / "supabase" / "config.toml").read_text())
    assert "ingest" not in config["api"]["schemas"]
    assert set(config["api"]["schemas"]) - {"graphql_public"} == set(EXPOSED)


async def test_nobody_but_the_worker_and_signed_in_people_enters_the_internal_schema(project: Project) -> None:
    roles = await project.owner.fetch(
        "select rolname from pg_roles where has_schema_privilege(oid, 'ingest', 'usage') and not rolsuper"
        "  and rolname !~ '^pg_' order by 1"
    )
    # lite_api and the Storage server inherit what authenticated has.
    direct = await project.owner.fetchval(
        "select array_agg(a.grantee::regrole::text order by 1) from pg_namespace n, aclexplode(n.nspacl) a"
        " where n.nspname = 'ingest' and a.grantee <> n.nspowner"
    )
    assert direct == ["authenticated", "ingest_worker"]
    assert {"anon", "service_role"}.isdisjoint(row["rolname"] for row in roles)
    assert not await project.owner.fetchval("select has_schema_privilege('authenticated', 'ingest', 'create')")


async def test_the_worker_is_no_more_than_it_must_be(project: Project) -> None:
    role = await project.owner.fetchrow("select * from pg_roles where rolname = 'ingest_worker'")
    assert role is not None
    assert (role["rolcanlogin"], role["rolbypassrls"]) == (True, True)
    for attribute in ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication"):
        assert not role[attribute]
    members = await project.owner.fetch(
        "select roleid::regrole::text from pg_auth_members where member = 'ingest_worker'::regrole"
    )
    assert members == []
    settings = {setting.partition("=")[0] for setting in role["rolconfig"]}
    assert settings >= {"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}
    for statement in (
        "select * from storage.objects",
        "select * from auth.users",
        "select * from public.tenant_members",
        "delete from public.documents",
        "delete from public.jobs",
        "insert into public.documents (id) values (gen_random_uuid())",
        "update ingest.embeddings set embedding = embedding",
        "update public.chunks set content = content",
        "select ingest.remove_document(gen_random_uuid())",
        "create table public.mine (id int)",
    ):  # fmt: skip
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await project.worker.execute(statement)


FORBIDDEN = [
    "insert into public.tenants (name) values ('mine')",
    "update public.tenants set name = 'mine'",
    "insert into public.tenant_members (tenant_id, user_id, role) values ($1, $1, 'admin')",
    "update public.tenant_members set role = 'admin'",
    "delete from public.tenant_members",
    "update public.documents set state = 'ready'",
    "delete from public.documents",
    "update public.jobs set state = 'available'",
    "insert into public.jobs (document_id, tenant_id, generation) values ($1, $1, 1)",
    "delete from public.job_events",
    "update public.chunks set content = ''",
    "delete from public.pages",
    "update ingest.embedding_models set active = true",
    "delete from ingest.embeddings",
    "select * from ingest.job_details",
    "select * from ingest.leases",
    "select * from ingest.parses",
    "delete from ingest.usage",
    "insert into public.usage (job_id) values (1)",
    "select * from ingest.usage_days",
    "update ingest.budgets set daily_usd = 1000000",
    "delete from ingest.prices",
    "select * from ingest.webhook_deliveries",
    "select ingest.expect_webhook(1, 1, 1, sha256(''))",
    "select setval('public.jobs_id_seq', 1)",
    "select ingest.claim_jobs($1, 1, '1 minute', 1)",
    "select ingest.sweep_tombstones()",
    "insert into public.tenant_invitations (tenant_id, user_id, role, invited_by) values ($1, $1, 'admin', $1)",
    "delete from public.tenant_invitations",
    "update ingest.quotas set bytes = null",
    "select * from ingest.page_months",
    "delete from ingest.audit",
    "select ingest.set_quota(null, 1, 1, 1, 1)",
    "select ingest.retry_over_quota()",
    "select ingest.cancel_live_jobs('{1}', 'x', 'x')",
    "select ingest.erase_rows($1)",
    "select ingest.note_act('x', '{}', 1)",
]


@pytest.mark.parametrize("acting", [as_anonymous, as_service, as_somebody])
async def test_nobody_writes_or_looks_behind_the_scenes(project: Project, acting: Any) -> None:
    for statement in FORBIDDEN:
        try:
            async with acting(project.admin):
                await project.admin.execute(statement, *([uuid4()] if "$1" in statement else []))
        except asyncpg.InsufficientPrivilegeError:
            continue
        pytest.fail(f"allowed: {statement}")


async def test_anonymous_callers_read_nothing_at_all(project: Project) -> None:
    for table in (name for name in WRITTEN["tables"] if name.startswith("public.")):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with as_anonymous(project.admin):
                await project.admin.fetch(f"select * from {table}")


@pytest.mark.parametrize("acting", [as_anonymous, as_service])
async def test_search_is_for_people_only(project: Project, acting: Any) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="search"):
        async with acting(project.admin):
            await project.admin.fetch("select * from public.search('x', $1)", [1.0] * 384)
