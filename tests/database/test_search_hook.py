"""What the edge function search asks the database: a bucket for each user, who pays, and the ledger's row."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from tests.callers import as_service
from tests.database.project import Project


async def admit(project: Project, user: UUID, *tenants: UUID) -> dict[str, Any]:
    async with as_service(project.admin):
        said = await project.admin.fetchval("select public.admit_search($1, $2)", user, list(tenants) or None)
    answer: dict[str, Any] = json.loads(said)
    return answer


async def record(project: Project, request: UUID, payer: UUID, tokens: int = 7) -> None:
    async with as_service(project.admin):
        await project.admin.execute(
            "select public.record_search($1, $2, 'local', 'all-MiniLM-L6-v2', $3)", request, payer, tokens
        )


async def test_an_admitted_search_is_told_the_active_model(project: Project) -> None:
    user = await project.user()
    assert await admit(project, user) == {
        "refused": None, "payer": str(user), "provider": "local", "model": "all-MiniLM-L6-v2", "dimensions": 384,
    }  # fmt: skip
    await project.owner.execute("update ingest.embedding_models set active = false")
    assert (await admit(project, user))["model"] is None


async def test_an_organisation_pays_when_its_member_searches_it_alone(project: Project) -> None:
    user, stranger = await project.user(), await project.user()
    one, other = await project.organisation(reader=user), await project.organisation(reader=user)
    assert (await admit(project, user, one))["payer"] == str(one)
    for tenants in ((one, other), (stranger,), ()):
        assert (await admit(project, user, *tenants))["payer"] == str(user)
    assert (await admit(project, stranger, one))["payer"] == str(stranger)


async def test_a_user_gets_a_sixth_of_a_minutes_searches_at_once_and_nobody_elses(project: Project) -> None:
    user, other = await project.user(), await project.user()
    answers = [await admit(project, user) for _ in range(12)]
    assert [answer["refused"] for answer in answers] == [None] * 10 + ["rate_limited"] * 2
    assert answers[-1]["wait_seconds"] == 1
    assert (await admit(project, other))["refused"] is None


async def test_a_new_limit_and_none_hold_for_who_searched_before(project: Project) -> None:
    user = await project.user()
    await project.owner.execute("select ingest.configure_rate_limit('search', 6, null)")
    assert [(await admit(project, user))["refused"] for _ in range(2)] == [None, "rate_limited"]
    await project.owner.execute("select ingest.configure_rate_limit('search', null, null)")
    assert [(await admit(project, user))["refused"] for _ in range(20)] == [None] * 20


async def test_the_buckets_of_those_who_stay_away_are_removed(project: Project) -> None:
    away, here = await project.user(), await project.user()
    for user in (away, here):
        await admit(project, user)
    await project.owner.execute(
        "update ingest.rate_limits set refilled_at = now() - interval '2 days' where key_name in ($1, 'default')",
        str(away),
    )
    await admit(project, here)
    rows = await project.owner.fetch("select key_name from ingest.rate_limits where provider = 'search'")
    assert {row["key_name"] for row in rows} == {"default", str(here)}


async def test_a_used_up_budget_of_the_payer_refuses_until_the_day_ends(project: Project) -> None:
    user = await project.user()
    tenant = await project.organisation(reader=user)
    await project.owner.execute("select ingest.set_budget('tenant', $1, 0)", tenant)
    said = await admit(project, user, tenant)
    assert said["refused"] == "budget_exhausted"
    assert 0 < said["wait_seconds"] <= 86_400
    assert (await admit(project, user))["refused"] is None


async def test_a_search_is_in_the_ledger_once_however_often_it_is_said(project: Project) -> None:
    user, request = await project.user(), uuid4()
    for _ in range(2):
        await record(project, request, user)
    await record(project, uuid4(), user, 5)
    (day,) = await project.owner.fetch("select * from ingest.usage_days where tenant_id = $1", user)
    assert (day["tokens"], day["requests"], day["money"]) == (12, 2, 0)
    for by, key in (("document", "search"), ("job", "search"), ("tenant", str(user))):
        rows = await project.owner.fetch("select * from ingest.usage_by($1, $2)", by, user)
        assert [(row["key"], row["tokens"]) for row in rows] == [(key, 12)]


async def test_a_search_of_nobody_is_refused(project: Project) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="whose search"):
        async with as_service(project.admin):
            await project.admin.fetchval("select public.admit_search(null)")
