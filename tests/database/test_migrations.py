"""The migrations on a database as hosted projects are: by the CLI, and statement by statement without its rights."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from local import migrations, shape
from local.deno import REPOSITORY
from local.errors import StackError
from local.postgres import SUPERUSER, Cluster
from local.secrets import Secrets

_numbers = count(1)
MEMBERSHIPS = """
    select roleid::regrole::text from pg_auth_members
    where member = 'postgres'::regrole and roleid::regrole::text like 'supabase_%'
"""


@pytest.fixture(scope="module")
async def shaped(memory_directory: Path, secrets: Secrets) -> AsyncIterator[Cluster]:
    """A cluster without any migration: the roles that migrations make do not exist in it."""
    cluster = Cluster(memory_directory / "unmigrated", secrets.passwords[SUPERUSER], durable=False)
    cluster.create()
    cluster.start()
    admin = await asyncpg.connect(cluster.admin_url())
    await shape.make_roles(admin, secrets.passwords)
    await shape.make_schemas(admin)
    await admin.close()
    yield cluster
    cluster.stop()


@dataclass
class Bare:
    """A hosted-shaped database without migrations, and a project to write some in."""

    admin_url: str
    url: str
    project: Path

    def write(self, name: str, sql: str) -> None:
        folder = self.project / "supabase" / "migrations"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(sql)
        (self.project / "supabase" / "config.toml").write_text('project_id = "scratch"\n')

    async def fetchval(self, sql: str) -> object:
        connection = await asyncpg.connect(self.admin_url)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()


@pytest.fixture
async def bare(shaped: Cluster, secrets: Secrets, tmp_path: Path) -> Bare:
    name = f"bare_{next(_numbers)}"
    admin = await asyncpg.connect(shaped.admin_url("template1"))
    await admin.execute(f"create database {name} template postgres")
    await shape.open_database(admin, name)
    await admin.close()
    return Bare(shaped.admin_url(name), shaped.url("postgres", secrets.passwords["postgres"], name), tmp_path)


async def test_every_migration_applies_with_no_more_rights_than_a_hosted_project_gives(bare: Bare) -> None:
    files = list((REPOSITORY / "supabase" / "migrations").glob("*.sql"))

    ran = await migrations.apply_strictly(bare.admin_url, bare.url)

    assert ran > len(files) > 0
    assert await bare.fetchval("select to_regclass('public.documents') is not null")
    assert await bare.fetchval(MEMBERSHIPS) is None


async def test_they_apply_where_realtime_is_missing_and_its_policies_again_when_it_is_there(bare: Bare) -> None:
    admin = await asyncpg.connect(bare.admin_url)
    policies = "select count(*) from pg_policies where schemaname = 'realtime' and policyname = 'sluice_receive'"
    await admin.execute("alter schema realtime rename to not_yet; drop publication supabase_realtime")

    await migrations.apply_strictly(bare.admin_url, bare.url)
    assert await bare.fetchval(policies) == 0

    await admin.execute("alter schema not_yet rename to realtime; create publication supabase_realtime")
    await admin.execute("alter publication supabase_realtime owner to postgres")
    await admin.close()
    (file,) = (REPOSITORY / "supabase" / "migrations").glob("*_realtime_policies.sql")
    for time in ("20260101000000", "20260101000001"):  # twice: it may be there already
        bare.write(f"{time}_again.sql", file.read_text())
    await migrations.apply_strictly(bare.admin_url, bare.url, bare.project)
    assert await bare.fetchval(policies) == 1
    published = "select string_agg(tablename, ',') from pg_publication_tables where pubname = 'supabase_realtime'"
    assert await bare.fetchval(published) == "jobs"


@pytest.mark.parametrize(
    "refused",
    [
        "alter table storage.objects enable row level security",
        "alter table storage.objects add column colour text",
        "create index on storage.objects (owner_id)",
        "create table storage.notes (id int)",
        "create function storage.f() returns int language sql return 1",
        "create table auth.notes (id int)",
        "create table realtime.notes (id int)",
        "alter table realtime.messages enable row level security",
        "delete from storage.objects",
        "do $$ begin if to_regclass('realtime.messages') is not null then "
        "drop policy if exists p on realtime.messages; create index on realtime.messages (topic); end if; end $$",
        "set role supabase_storage_admin",
        "create role boss superuser",
        "alter table storage.objects disable trigger all",
        "comment on trigger protect_objects_delete on storage.objects is 'ours'",
    ],
)
async def test_a_statement_that_hosted_projects_refuse_fails_here_too(bare: Bare, refused: str) -> None:
    bare.write("20260101000000_refused.sql", f"select 1;\n{refused};")

    with pytest.raises(StackError, match="a hosted project would refuse this"):
        await migrations.apply_strictly(bare.admin_url, bare.url, bare.project)


@pytest.mark.parametrize(
    "allowed",
    [
        "create policy p on storage.objects for select to authenticated using (owner_id = (select auth.uid())::text)",
        "create policy p on realtime.messages for select to authenticated using ((select realtime.topic()) = 'x')",
        "do $$ begin if to_regclass('realtime.messages') is not null then "
        "drop policy if exists p on realtime.messages; "
        "create policy p on realtime.messages for select to authenticated using (true); end if; end $$",
        "create policy p on storage.buckets using (true); alter policy p on storage.buckets using (false); "
        "drop policy p on storage.buckets",
        "drop policy if exists nothing on storage.objects",
        "create function public.f() returns trigger language plpgsql as 'begin return null; end'; "
        "create trigger t after insert on storage.objects for each row execute function public.f(); "
        "drop trigger t on storage.objects",
        "create extension if not exists vector with schema extensions",
        "create role robot login bypassrls",
        "create table public.t (u uuid references auth.users (id)); "
        "alter publication supabase_realtime add table public.t",
        "insert into storage.buckets (id, name) values ('b', 'b')",
    ],
)
async def test_a_statement_that_hosted_projects_allow_passes(bare: Bare, allowed: str) -> None:
    bare.write("20260101000000_allowed.sql", f"{allowed};")

    assert await migrations.apply_strictly(bare.admin_url, bare.url, bare.project) > 0


async def test_pushing_again_applies_only_what_is_new(bare: Bare) -> None:
    bare.write("20260101000000_one.sql", "create table public.one (id int primary key);")
    await migrations.push(bare.admin_url, bare.url, bare.project)
    bare.write("20260101000001_two.sql", "create table public.two (id int primary key);")

    await migrations.push(bare.admin_url, bare.url, bare.project)

    applied = await bare.fetchval(
        "select array_agg(version order by version) from supabase_migrations.schema_migrations"
    )
    assert applied == ["20260101000000", "20260101000001"]


async def test_a_migration_that_fails_names_its_file_leaves_nothing_and_gives_the_rights_back(bare: Bare) -> None:
    bare.write("20260101000000_good.sql", "create table public.kept (id int primary key);")
    bare.write("20260101000001_bad.sql", "create table public.gone (id int primary key); select 1 / 0;")

    with pytest.raises(StackError, match=r"(?s)db push failed.*division by zero"):
        await migrations.push(bare.admin_url, bare.url, bare.project)

    assert await bare.fetchval("select to_regclass('public.kept') is not null and to_regclass('public.gone') is null")
    assert await bare.fetchval(MEMBERSHIPS) is None


async def test_what_a_migration_forgets_to_revoke_is_open_to_the_api(bare: Bare) -> None:
    bare.write(
        "20260101000000_open.sql", "create table public.open (id int); create function public.f() returns int return 1;"
    )

    await migrations.push(bare.admin_url, bare.url, bare.project)

    assert await bare.fetchval(
        "select has_table_privilege('anon', 'public.open', 'insert') "
        "and has_function_privilege('anon', 'public.f()', 'execute')"
    )


def test_statements_are_split_only_where_one_ends() -> None:
    sql = """
    -- a; comment
    select 'it''s; one', "a;b", E'\\'; x' /* ; /* nested; */ ; */;
    do $$ begin perform 1; end $$;
    create function f() returns int language sql begin atomic select case when true then 1; end; end;
    do $body$ select $$;$$; $body$;
    -- only a comment;
    """.replace("then 1; end; end", "then 1 end; end")

    pieces = [piece.strip() for piece in migrations.statements(sql)]

    assert [piece.split()[0] for piece in pieces] == ["--", "do", "create", "do"]
    assert pieces[2].endswith("end; end")
