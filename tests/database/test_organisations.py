"""Organisations: who makes, renames, joins and leaves them, through the functions that the API calls."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_anonymous, as_role, as_service, as_user
from tests.database.people import FORBIDDEN, LAST_ADMIN, WRONG, call, refused
from tests.database.project import Project

CREATE = "select public.create_organisation($1)"
INVITE = "select public.invite_member($1, $2::public.tenant_role, $3, $4)"
ACCEPT = "select public.accept_invitation($1)"
ROLES = ("reader", "editor", "admin")


async def made(project: Project) -> tuple[UUID, UUID]:
    """Make an organisation as its admin does; return it and the admin."""
    admin = await project.user()
    return await call(project, admin, CREATE, "Acme"), admin


async def confirmed(project: Project, email: str) -> UUID:
    """Sign somebody up whose e-mail address is confirmed."""
    user = uuid4()
    await project.admin.execute(
        "insert into auth.users (id, email, email_confirmed_at) values ($1, $2, now())", user, email
    )
    return user


async def role_of(project: Project, tenant: UUID, user: UUID) -> str | None:
    role: str | None = await project.owner.fetchval(
        "select role from public.tenant_members where tenant_id = $1 and user_id = $2", tenant, user
    )
    return role


async def test_who_makes_an_organisation_is_its_admin_and_may_upload_there(project: Project) -> None:
    tenant, admin = await made(project)
    assert await role_of(project, tenant, admin) == "admin"
    async with as_user(project.admin, admin):
        row = await project.admin.fetchrow("select kind, name from public.tenants where id = $1", tenant)
        assert row is not None
        assert (row["kind"], row["name"]) == ("organisation", "Acme")
        await project.admin.execute(
            "insert into storage.objects (bucket_id, name, version) values ('documents', $1, '1')", f"{tenant}/a.txt"
        )


@pytest.mark.parametrize("acting", [as_anonymous, as_service])
async def test_only_signed_in_people_make_organisations(project: Project, acting: Any) -> None:
    assert await refused(project, acting(project.admin), CREATE, "Acme") == FORBIDDEN


async def test_a_token_without_a_subject_makes_no_organisation(project: Project) -> None:
    nobody = as_role(project.admin, "authenticated", {"role": "authenticated"})
    assert await refused(project, nobody, CREATE, "Acme") == FORBIDDEN


@pytest.mark.parametrize("name", ["", "   ", "x" * 201, None])
async def test_an_organisation_needs_a_name(project: Project, name: str | None) -> None:
    assert await refused(project, await project.user(), CREATE, name) == WRONG


async def test_a_person_makes_twenty_organisations_and_no_more(project: Project) -> None:
    user = await project.user()
    for number in range(20):
        await call(project, user, CREATE, f"Acme {number}")
    assert await refused(project, user, CREATE, "one more") == FORBIDDEN
    assert await refused(project, await project.user(), CREATE, "another's") == "allowed"


@pytest.mark.parametrize("role", [*ROLES, "stranger"])
async def test_only_an_admin_renames_invites_promotes_and_removes(project: Project, role: str) -> None:
    tenant, _ = await made(project)
    member, other = await project.user(), await project.user()
    await project.join(tenant, other, "reader")
    if role != "stranger":
        await project.join(tenant, member, role)
    for sql, arguments in (
        ("select public.rename_organisation($1, 'New')", (tenant,)),
        (INVITE, (tenant, "reader", None, uuid4())),
        ("select public.change_role($1, $2, 'editor')", (tenant, other)),
        ("select public.remove_member($1, $2)", (tenant, other)),
    ):
        assert await refused(project, member, sql, *arguments) == ("allowed" if role == "admin" else FORBIDDEN), sql
    expected = ("New", None) if role == "admin" else ("Acme", "reader")
    name = await project.owner.fetchval("select name from public.tenants where id = $1", tenant)
    assert (name, await role_of(project, tenant, other)) == expected


async def test_an_organisation_that_is_not_there_sounds_like_anothers(project: Project) -> None:
    tenant, _ = await made(project)
    stranger, said = await project.user(), []
    for asked in (tenant, uuid4()):
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as refusal:
            await call(project, stranger, "select public.rename_organisation($1, 'Mine')", asked)
        said.append(str(refusal.value).replace(str(asked), "…"))
    assert said[0] == said[1]


async def test_a_personal_tenant_cannot_be_renamed_or_shared(project: Project) -> None:
    user = await project.user()
    assert await refused(project, user, "select public.rename_organisation($1, 'New')", user) == FORBIDDEN
    assert await refused(project, user, INVITE, user, "reader", None, uuid4()) == FORBIDDEN


async def test_the_last_admin_can_neither_leave_nor_be_demoted_nor_removed(project: Project) -> None:
    tenant, admin = await made(project)
    await project.join(tenant, await project.user(), "editor")
    for sql, arguments in (
        ("select public.leave_organisation($1)", (tenant,)),
        ("select public.change_role($1, $2, 'editor')", (tenant, admin)),
        ("select public.remove_member($1, $2)", (tenant, admin)),
    ):
        assert await refused(project, admin, sql, *arguments) == LAST_ADMIN, sql
    assert await role_of(project, tenant, admin) == "admin"


@pytest.mark.parametrize("role", ROLES)
async def test_a_member_leaves_when_they_want(project: Project, role: str) -> None:
    tenant, _ = await made(project)
    member = await project.user()
    await project.join(tenant, member, role)
    assert await call(project, member, "select public.leave_organisation($1)", tenant)
    assert await role_of(project, tenant, member) is None
    assert not await call(project, member, "select public.leave_organisation($1)", tenant)


async def test_whom_an_admin_removes_loses_files_rows_and_search_at_once(project: Project) -> None:
    tenant, admin = await made(project)
    member = await project.user()
    await project.join(tenant, member, "editor")
    await project.ready(tenant, "a.txt", "text")
    looks = ("public.documents", "public.jobs", "public.job_events", "public.chunks", "storage.objects")
    for table in looks:
        assert await call(project, member, f"select count(*) from {table}") > 0, table
    assert await call(project, admin, "select public.remove_member($1, $2)", tenant, member)
    for table in looks:
        assert await call(project, member, f"select count(*) from {table}") == 0, table
    upload = "insert into storage.objects (bucket_id, name, version) values ('documents', $1, '1')"
    assert await refused(project, member, upload, f"{tenant}/b.txt") == FORBIDDEN


async def test_a_demoted_editor_reads_on_and_writes_no_more(project: Project) -> None:
    tenant, admin = await made(project)
    member = await project.user()
    await project.join(tenant, member, "editor")
    upload = "insert into storage.objects (bucket_id, name, version) values ('documents', $1, '1')"
    assert await refused(project, member, upload, f"{tenant}/a.txt") == "allowed"
    await call(project, admin, "select public.change_role($1, $2, 'reader')", tenant, member)
    assert await refused(project, member, upload, f"{tenant}/b.txt") == FORBIDDEN
    assert await call(project, member, "select count(*) from public.documents") == 1


async def test_who_was_invited_by_id_joins_with_the_role_they_were_offered(project: Project) -> None:
    tenant, admin = await made(project)
    guest, other = await project.user(), await project.user()
    invitation = await call(project, admin, INVITE, tenant, "editor", None, guest)
    assert await call(project, guest, "select tenant_name from public.my_invitations()") == "Acme"
    assert await call(project, other, "select count(*) from public.my_invitations()") == 0
    assert await role_of(project, tenant, guest) is None
    assert await refused(project, other, ACCEPT, invitation) == FORBIDDEN
    assert await call(project, guest, ACCEPT, invitation) == tenant
    assert await role_of(project, tenant, guest) == "editor"
    assert await refused(project, guest, ACCEPT, invitation) == FORBIDDEN


async def test_an_invitation_by_e_mail_waits_for_who_confirms_that_address(project: Project) -> None:
    tenant, admin = await made(project)
    invitation = await call(project, admin, INVITE, tenant, "reader", " Ada@Example.org ", None)
    pretender = uuid4()
    await project.admin.execute("insert into auth.users (id, email) values ($1, 'ada@example.org')", pretender)
    assert await call(project, pretender, "select count(*) from public.my_invitations()") == 0
    assert await refused(project, pretender, ACCEPT, invitation) == FORBIDDEN
    await project.admin.execute("update auth.users set email_confirmed_at = now() where id = $1", pretender)
    assert await call(project, pretender, ACCEPT, invitation) == tenant
    assert await role_of(project, tenant, pretender) == "reader"


async def test_the_answer_to_an_invitation_tells_nobody_who_exists(project: Project) -> None:
    tenant, admin = await made(project)
    await confirmed(project, "here@example.org")
    member = await confirmed(project, "member@example.org")
    await project.join(tenant, member, "reader")
    answers = [
        await call(project, admin, INVITE, tenant, "reader", email, None)
        for email in ("here@example.org", "member@example.org", "nowhere@example.org")
    ]
    answers += [await call(project, admin, INVITE, tenant, "reader", None, user) for user in (member, uuid4())]
    assert all(isinstance(answer, UUID) for answer in answers)
    async with as_user(project.admin, admin):
        rows = await project.admin.fetch("select * from public.tenant_invitations")
    assert {row["user_id"] for row in rows if row["email"]} == {None}


async def test_an_invitation_never_changes_the_role_of_a_member(project: Project) -> None:
    tenant, admin = await made(project)
    invitation = await call(project, admin, INVITE, tenant, "reader", None, admin)
    assert await call(project, admin, ACCEPT, invitation) == tenant
    assert await role_of(project, tenant, admin) == "admin"


async def test_an_invitation_runs_out(project: Project) -> None:
    tenant, admin = await made(project)
    guest = await project.user()
    invitation = await call(project, admin, INVITE, tenant, "reader", None, guest)
    await project.owner.execute("update public.tenant_invitations set expires_at = now()")
    assert await call(project, guest, "select count(*) from public.my_invitations()") == 0
    assert await refused(project, guest, ACCEPT, invitation) == FORBIDDEN


async def test_a_second_invitation_takes_the_place_of_the_first(project: Project) -> None:
    tenant, admin = await made(project)
    guest = await project.user()
    first = await call(project, admin, INVITE, tenant, "admin", None, guest)
    second = await call(project, admin, INVITE, tenant, "reader", None, guest)
    assert await refused(project, guest, ACCEPT, first) == FORBIDDEN
    await call(project, guest, ACCEPT, second)
    assert await role_of(project, tenant, guest) == "reader"


@pytest.mark.parametrize("who", ["admin", "guest", "member", "stranger"])
async def test_an_invitation_is_withdrawn_by_an_admin_or_its_guest(project: Project, who: str) -> None:
    tenant, admin = await made(project)
    people = {"admin": admin, **{name: await project.user() for name in ("guest", "member", "stranger")}}
    await project.join(tenant, people["member"], "editor")
    invitation = await call(project, admin, INVITE, tenant, "reader", None, people["guest"])
    withdrawn = await call(project, people[who], "select public.withdraw_invitation($1)", invitation)
    assert withdrawn == (who in ("admin", "guest"))
    assert await project.owner.fetchval("select count(*) from public.tenant_invitations") == int(not withdrawn)


@pytest.mark.parametrize("role", ROLES)
async def test_only_admins_read_who_was_invited(project: Project, role: str) -> None:
    tenant, admin = await made(project)
    member = await project.user()
    await project.join(tenant, member, role)
    await call(project, admin, INVITE, tenant, "reader", "ada@example.org", None)
    assert await call(project, member, "select count(*) from public.tenant_invitations") == int(role == "admin")


@pytest.mark.parametrize(
    ("email", "user"), [(None, None), ("a@example.org", uuid4()), ("nonsense", None), ("a b@example.org", None)]
)
async def test_an_invitation_names_one_person(project: Project, email: str | None, user: UUID | None) -> None:
    tenant, admin = await made(project)
    assert await refused(project, admin, INVITE, tenant, "reader", email, user) == WRONG


async def test_a_hundred_invitations_are_open_at_most(project: Project) -> None:
    tenant, admin = await made(project)
    for _ in range(100):
        await call(project, admin, INVITE, tenant, "reader", None, uuid4())
    assert await refused(project, admin, INVITE, tenant, "reader", None, uuid4()) == FORBIDDEN
