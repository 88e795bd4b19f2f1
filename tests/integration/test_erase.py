"""`sluice erase` on the running stack: objects by the Storage API, then the rows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from click.testing import CliRunner, Result

from local.stack import Stack
from tests.people import Person, Project
from worker.__main__ import sluice

FILES = 120  # more than one request's


def environment(stack: Stack, **changes: str) -> dict[str, str]:
    """What an operator sets: the owner's login, not the worker's."""
    return stack.environment() | {"DATABASE_URL": stack.database_url} | changes


async def erase(settings: dict[str, str], *arguments: str, answer: str | None = None) -> Result:
    return await asyncio.to_thread(CliRunner(env=settings).invoke, sluice, ["erase", *arguments], answer)


async def told(settings: dict[str, str], *arguments: str) -> Any:
    result = await erase(settings, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["erased"]


async def left(project: Project, person: Person) -> tuple[int, int]:
    objects = await project.connection.fetchval(
        "select count(*) from storage.objects where name like $1 || '/%'", person.id
    )
    return objects, await project.count("public.documents", person.id)


async def test_a_tenants_files_and_rows_go_and_nobody_elses(
    stack: Stack, project: Project, ada: Person, bob: Person
) -> None:
    await asyncio.gather(*(ada.upload(f"{number}.md", b"# Pier") for number in range(FILES)))
    await bob.upload("kept.md", b"# Pier")
    declined = await erase(environment(stack), ada.id, answer="n\n")
    assert declined.exit_code == 1
    assert await left(project, ada) == (FILES, FILES)
    agreed = await erase(environment(stack), ada.id, answer="y\n")
    assert agreed.exit_code == 0, agreed.output
    assert f"{FILES} documents" in agreed.output
    assert f"{FILES} objects" in agreed.output
    assert await left(project, ada) == (0, 0)
    assert await left(project, bob) == (1, 1)
    assert await project.count("public.jobs", ada.id) == 0
    assert await told(environment(stack), ada.id, "--yes") == [{"tenant": ada.id, "objects": 0, "rows": {}}]


async def test_while_storage_does_not_answer_nothing_is_erased_and_the_next_run_finishes(
    stack: Stack, project: Project, ada: Person
) -> None:
    await ada.upload("a.md", b"# Pier")
    result = await erase(environment(stack, SUPABASE_URL="http://127.0.0.1:9"), ada.id, "--yes")
    assert result.exit_code == 1
    assert "Storage did not answer" in result.output
    assert await left(project, ada) == (1, 1)
    wrong = await erase(environment(stack, SUPABASE_SECRET_KEY="sb_secret_" + "x" * 30), ada.id, "--yes")
    assert wrong.exit_code == 1
    assert await left(project, ada) == (1, 1)
    (done,) = await told(environment(stack), ada.id, "--yes")
    assert (done["objects"], done["rows"]["public.tenants"]) == (1, 1)
    assert await left(project, ada) == (0, 0)


async def test_the_workers_own_login_may_not_erase(stack: Stack, project: Project, ada: Person) -> None:
    await ada.upload("a.md", b"# Pier")
    result = await erase(stack.environment(), ada.id, "--yes")
    assert result.exit_code == 1
    assert await left(project, ada) == (1, 1)


async def test_accounts_that_were_deleted_are_erased_together(
    stack: Stack, project: Project, ada: Person, bob: Person
) -> None:
    await ada.upload("a.md", b"# Pier")
    await bob.upload("b.md", b"# Pier")
    await project.connection.execute("delete from auth.users where id = $1::uuid", ada.id)
    gone = {one["tenant"]: one["objects"] for one in await told(environment(stack), "--deleted-users", "--yes")}
    assert gone[ada.id] == 1
    assert bob.id not in gone
    assert await left(project, ada) == (0, 0)
    assert await left(project, bob) == (1, 1)


async def test_one_tenant_or_deleted_users_must_be_said(stack: Stack) -> None:
    for arguments in ((), ("--deleted-users", "00000000-0000-4000-8000-000000000000"), ("nonsense",)):
        assert (await erase(environment(stack), *arguments)).exit_code == 2
