"""The world of the matrix: people, an organisation, a published document of each, and one cell tried out in it.

Callers act in plain SQL exactly as PostgREST lets them: a role and the token's claims, for one transaction. Every try
is rolled back. Rows belong to one of three owners: the users A and B, and the organisation `org`.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

import asyncpg

from tests.callers import as_role
from tests.conftest import Database
from tests.database.project import DIMENSIONS, Project, digest

OWNERS = ("A", "B", "org")
MEMBERS = ("reader", "editor", "admin")
REFUSED, NOTHING = "x", "."
# What Storage sets before it deletes; without it the table refuses everybody alike.
_STORAGE = "set local storage.allow_delete_query = 'true'"


class Undo(Exception):
    """Ends a transaction without a trace."""


class World:
    """`people` by name, `own` the values that statements may name of each owner; made by `open`."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.people: dict[str, UUID] = {}
        self.own: dict[str, dict[str, object]] = {}
        self.fixed: dict[str, object] = {}

    @classmethod
    async def open(cls, database: Database) -> World:
        """Make everybody, and a published document with everything around it for each owner."""
        project = await Project(database).open()
        world = cls(project)
        for name in ("A", "B", *MEMBERS, "removed", "operator", "pretender"):
            world.people[name] = await project.user()
        members = {role: world.people[role] for role in MEMBERS}
        org = await project.organisation(**members)
        await project.join(org, world.people["removed"], "admin")
        await project.owner.execute(
            "delete from public.tenant_members where tenant_id = $1 and user_id = $2", org, world.people["removed"]
        )
        for owner, tenant in (("A", world.people["A"]), ("B", world.people["B"]), ("org", org)):
            await world._furnish(owner, tenant)
        # Afterwards: furnishing claims whatever waits.
        for owner in OWNERS:
            await world._leave_work(owner)
        invitation = await project.owner.fetchval(
            "insert into public.tenant_invitations (tenant_id, user_id, role, invited_by) values ($1, $2, 'editor', $3)"
            " returning id",
            org, world.people["B"], world.people["admin"],
        )  # fmt: skip
        await project.owner.execute("select ingest.note_act('retry_job', '{}', 1)")
        topics = ["ops:jobs", "document:*", "document:"]
        for values in world.own.values():
            topics += [f"document:{values['document']}{end}" for end in ("", "x")] + [f"tenant:{values['tenant']}"]
        await project.admin.execute(
            "insert into realtime.messages (topic, extension, event, payload, private)"
            " select t, 'broadcast', 'progress', '{}', true from unnest($1::text[]) t",
            topics,
        )
        world.fixed = {
            "vector": f"array_fill(0.1::real, array[{DIMENSIONS}])", "stranger": world.people["B"], "org": org,
            "reader": world.people["reader"], "invitation": invitation,
        }  # fmt: skip
        return world

    async def _furnish(self, owner: str, tenant: UUID) -> None:
        project = self.project
        document = await project.ready(tenant, "a.txt", f"the text of {owner}")
        job, parse = await project.owner.fetchrow(  # type: ignore[misc]
            "select j.id, d.published_parse_id from public.jobs j join public.documents d on d.id = j.document_id"
            " where d.id = $1",
            document,
        )
        await project.owner.execute(
            "select ingest.record_usage('r', array[$1::bigint], array[1::bigint], array[$2::uuid], array[$3::uuid],"
            " '{local}', '{MiniLM}', '{embed}', '{0}', '{1}', '{1}')",
            job, document, tenant,
        )  # fmt: skip
        await project.owner.execute("insert into ingest.quotas (tenant_id, bytes) values ($1, 1000000)", tenant)
        self.own[owner] = {
            "tenant": tenant, "document": document, "job": job, "parse": parse, "name": f"{tenant}/a.txt",
            "key": "\\x" + digest(owner).hex(), "new": uuid4(),
        }  # fmt: skip

    async def _leave_work(self, owner: str) -> None:
        """Give the owner a job that waits and one that was cancelled."""
        project, values = self.project, self.own[owner]
        for state in ("waiting", "ended"):
            document = await project.upload(str(values["tenant"]), f"{state}.txt")
            values[state] = await project.owner.fetchval("select id from public.jobs where document_id = $1", document)
        await project.owner.execute(
            "select ingest.cancel_live_jobs(array[$1::bigint], 'cancelled', 'x')", values["ended"]
        )

    async def outcome(self, caller: str, statement: str, before: str = "") -> str:
        """Try a statement as `caller` on each owner's rows, and say on whose it had an effect.

        `x`: refused (42501) on all; `.`: no effect and at least once no refusal; the owners joined by `+`, or `all`;
        another error is its SQLSTATE. `{other}` in the statement stands for every other owner's tenant in turn.
        """
        seen: list[str] = []
        errors: set[str] = set()
        for owner in OWNERS:
            said = {
                await self._try(caller, text, prepared) for text, prepared in self._filled(owner, statement, before)
            }
            if "done" in said:
                seen.append(owner)
            errors |= said - {"done"}
        if seen:
            return "all" if len(seen) == len(OWNERS) else "+".join(seen)
        if strange := errors - {REFUSED, NOTHING}:
            return "/".join(sorted(strange))
        return NOTHING if NOTHING in errors else REFUSED

    def _filled(self, owner: str, statement: str, before: str) -> Iterable[tuple[str, str]]:
        others = [name for name in OWNERS if name != owner] if "{other}" in statement else [owner]
        for other in others:
            values = self.own[owner] | self.fixed | {"other": self.own[other]["tenant"]}
            yield _fill(statement, values), _fill(before, values)

    async def _try(self, caller: str, statement: str, before: str) -> str:
        connection = self.project.worker if caller == "worker" else self.project.admin
        effect = NOTHING
        try:
            async with connection.transaction():
                if caller != "worker":
                    async with as_role(connection, *self.claims(caller)):
                        effect = await _effect(connection, statement, before)
                        raise Undo
                effect = await _effect(connection, statement, before)
                raise Undo
        except Undo:
            return effect
        except asyncpg.InsufficientPrivilegeError:
            return REFUSED
        except asyncpg.PostgresError as error:
            return error.sqlstate or "?"

    def claims(self, caller: str) -> tuple[str, dict[str, object]]:
        """Return the role and the claims that a caller's request comes with."""
        if caller in ("anon", "service"):
            role = "anon" if caller == "anon" else "service_role"
            return role, {"role": role}
        claims: dict[str, object] = {"sub": str(self.people[caller]), "role": "authenticated"}
        if caller == "operator":
            claims["app_metadata"] = {"sluice_role": "operator"}
        if caller == "pretender":  # what every user may write about themselves
            claims["user_metadata"] = {"sluice_role": "operator"}
        return "authenticated", claims


async def _effect(connection: asyncpg.Connection, statement: str, before: str) -> str:
    await connection.execute(_STORAGE)
    if before:
        await connection.execute(before)
    status = await connection.execute(statement)
    return NOTHING if status.split()[-1] == "0" else "done"


def _fill(text: str, values: dict[str, object]) -> str:
    # Not str.format: braces are also arrays in SQL.
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text
