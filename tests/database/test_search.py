"""Search: what it refuses, what it finds, and that filters only ever narrow."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pgvector import HalfVector

from tests.callers import as_user
from tests.database.project import DIMENSIONS, Project, key_of, vector_of

GOOD = vector_of("anything")


async def search(
    project: Project,
    user: UUID,
    query: str | None,
    vector: Any = GOOD,
    count: int | None = 10,
    filters: Any = None,
) -> list[asyncpg.Record]:
    """Search as a user."""
    async with as_user(project.admin, user):
        rows: list[asyncpg.Record] = await project.admin.fetch(
            "select * from public.search($1, $2, $3, $4)", query, vector, count, json.dumps(filters or {})
        )
    return rows


def contents(rows: list[asyncpg.Record]) -> list[str]:
    return [row["content"] for row in rows]


@pytest.fixture
async def user(project: Project) -> UUID:
    """A user with two published documents."""
    user = await project.user()
    await project.ready(user, "reports/whales.txt", "The whales sing at night.", "Ships pass by.")
    await project.ready(user, "letters/bees.txt", "Bees dance to tell where flowers are.")
    return user


def changed(index: int, number: float | None) -> list[float | None]:
    return [*GOOD[:index], number, *GOOD[index + 1 :]]


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        (None, "query_embedding is null"),
        ([1.0, 2.0, 3.0], "has 3 dimensions, the active model all-MiniLM-L6-v2 has 384"),
        ([], "has 0 dimensions"),
        ([1.0] * (DIMENSIONS + 1), "has 385 dimensions"),
        ([GOOD[:192], GOOD[192:]], "query_embedding"),
        ([0.0] * DIMENSIONS, "query_embedding is zero"),
        ([-0.0] * DIMENSIONS, "query_embedding is zero"),
        (changed(5, None), "a null, a NaN or an infinity"),
        (changed(5, float("nan")), "a null, a NaN or an infinity"),
        (changed(5, float("inf")), "a null, a NaN or an infinity"),
        (changed(5, float("-inf")), "a null, a NaN or an infinity"),
    ],
)
async def test_a_vector_that_cannot_be_compared_is_refused_in_words(
    project: Project, user: UUID, vector: Any, said: str
) -> None:
    for query in ("whales", ""):
        with pytest.raises(asyncpg.InvalidParameterValueError, match=said) as refused:
            await search(project, user, query, vector)
        assert refused.value.hint


@pytest.mark.parametrize("count", [0, -1, 101, 10000, None])
async def test_a_match_count_beyond_the_limit_is_refused(project: Project, user: UUID, count: int | None) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match="between 1 and 100"):
        await search(project, user, "whales", count=count)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"tenants": []}, "There is no filter tenants"),
        ({"document_ids": ["x"]}, "an id that is not a UUID"),
        ({"tenant_ids": [1]}, "an id that is not a UUID"),
        ({"tenant_ids": "x"}, "wrong type"),
        ({"document_ids": None}, "wrong type"),
        ({"document_ids": {}}, "wrong type"),
        ({"document_ids": [str(uuid4())] * 1001}, "wrong type"),
        ({"name_prefix": ["x"]}, "wrong type"),
        ({"mime_types": "text/plain"}, "wrong type"),
        ({"language": 1}, "wrong type"),
        ({"language": "klingon"}, "no text search language klingon"),
        ([1], "must be a JSON object"),
        ("text", "must be a JSON object"),
    ],
)
async def test_a_filter_that_is_not_understood_is_refused(
    project: Project, user: UUID, filters: Any, said: str
) -> None:
    with pytest.raises(asyncpg.InvalidParameterValueError, match=said):
        await search(project, user, "whales", filters=filters)


async def test_a_query_has_a_limit(project: Project, user: UUID) -> None:
    assert await search(project, user, "é" * 4000) is not None
    with pytest.raises(asyncpg.InvalidParameterValueError, match="4001 characters, at most 4000"):
        await search(project, user, "x" * 4001)


@pytest.mark.parametrize("query", [None, "", " ", "\n\t  ", "\u2003"])
async def test_a_blank_query_gives_no_rows(project: Project, user: UUID, query: str | None) -> None:
    assert await search(project, user, query) == []


@pytest.mark.parametrize("query", ["the", "the and of", "-", '"', '""', "OR", "- - -", "!!!", "&|!()<->", ":*"])
async def test_a_query_without_words_finds_by_meaning_only(project: Project, user: UUID, query: str) -> None:
    rows = await search(project, user, query)
    assert len(rows) == 3
    assert all(row["text_rank"] is None and row["vector_rank"] for row in rows)


ODDITIES = [
    '"unclosed', "-", "- whales", "--whales", "OR OR", "or or or", 'a"b"c', '"a" OR -"b', "' or 1=1 --", "whales:*",
    "<->", "a <2> b", "\\", "\\'", "%_", "$$", "🐋 🐋", "ﷺ", "a\u0300", "\u202e", "\ufeff", "x" * 4000, '"' * 4000,
    "-" * 4000, "OR " * 1333, "- " * 2000, '"a" ' * 1000, "(" * 4000, "a-b-c-d/e.f@g.h:80/?q=1#z", "1e999 0x 1.2.3",
    "a" * 2047, "a" * 2046 + " b", "é" * 1023, "w " * 2000, "-w " * 1333,
    '-""' * 1333, "-" * 31 + " whales", "- (! & |" * 500,
]  # fmt: skip


@pytest.mark.parametrize("filters", [{}, {"language": "simple"}, {"language": "german"}])
async def test_no_query_is_an_error(project: Project, user: UUID, filters: dict[str, str]) -> None:
    for query in ODDITIES:
        assert len(await search(project, user, query, filters=filters)) <= 10, query[:40]


async def test_a_line_of_dashes_hides_no_words(project: Project, user: UUID) -> None:
    (found,) = [row for row in await search(project, user, "-" * 80 + " whales") if row["text_rank"]]
    assert found["content"] == "The whales sing at night."


async def test_nothing_that_people_type_is_an_error(project: Project, user: UUID) -> None:
    queries: list[str] = []
    alphabet = st.one_of(
        st.sampled_from("\"'-()&|!<>:*\\ \nORor"), st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    )

    @settings(max_examples=300, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.text(alphabet, min_size=1, max_size=60))
    def collect(query: str) -> None:
        queries.append(query)

    collect()
    async with as_user(project.admin, user):
        for query in queries:
            await project.admin.fetch("select * from public.search($1, $2)", query, GOOD)


@pytest.mark.parametrize("scale", [1e38, 1e-38, 1e-42, -1.0, 65504.0])
async def test_only_the_direction_of_a_vector_counts(project: Project, user: UUID, scale: float) -> None:
    # float32 as it travels; 1e38 has a norm beyond it, 1e-42 a norm of nothing. Signs turn the order around.
    vector = [float(number) for number in np.array(vector_of("Ships pass by."), "f4") * np.float32(0.5)]
    plain = await search(project, user, "nothing", vector)
    scaled = await search(project, user, "nothing", [number * scale for number in vector])
    expected = contents(plain) if scale > 0 else contents(plain)[::-1]
    if scale != 1e-42:  # down there a number has three bits left
        assert contents(scaled) == expected
    assert all(abs(row["similarity"]) <= 1.001 for row in scaled)


async def test_a_vector_with_a_single_number_is_a_direction(project: Project, user: UUID) -> None:
    for number in (3e38, -3e38, 1e-45):
        rows = await search(project, user, "nothing", [number] + [0.0] * (DIMENSIONS - 1))
        assert len(rows) == 3
        assert all(abs(row["similarity"]) <= 1 for row in rows)


async def test_hits_by_meaning_and_by_words_are_fused_by_rank(project: Project, user: UUID) -> None:
    rows = await search(project, user, "whales", vector_of("Ships pass by."))
    by_content = {row["content"]: row for row in rows}
    whales, ships = by_content["The whales sing at night."], by_content["Ships pass by."]
    assert (ships["vector_rank"], ships["text_rank"]) == (1, None)
    assert ships["similarity"] == pytest.approx(1, abs=0.001)
    assert whales["text_rank"] == 1
    for row in rows:
        ranks = [rank for rank in (row["vector_rank"], row["text_rank"]) if rank]
        assert row["score"] == pytest.approx(sum(1 / (60 + rank) for rank in ranks))
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert rows[0] == whales  # found both ways


async def test_a_hit_can_be_cited(project: Project, user: UUID) -> None:
    row = (await search(project, user, "ships"))[0]
    assert (row["content"], row["document_title"]) == ("Ships pass by.", "Title")
    assert row["document_name"] == f"{user}/reports/whales.txt"
    assert (row["page_start"], row["page_end"], row["ordinal"], row["stale"]) == (2, 2, 1, False)
    pages = await project.owner.fetch(
        "select markdown from public.pages p join public.documents d on d.published_parse_id = p.parse_id"
        " where d.id = $1 order by page",
        row["document_id"],
    )
    text = "\n\n".join(page["markdown"] for page in pages)
    assert text[row["char_start"] : row["char_end"]] == row["content"]


async def test_no_more_than_asked_for(project: Project, user: UUID) -> None:
    assert len(await search(project, user, "whales", count=1)) == 1
    assert len(await search(project, user, "whales", count=100)) == 3


async def test_equal_contents_are_both_found(project: Project, user: UUID) -> None:
    await project.ready(user, "copy.txt", "Ships pass by.")
    rows = await search(project, user, "ships", vector_of("Ships pass by."))
    assert contents(rows)[:2] == ["Ships pass by."] * 2
    assert {row["vector_rank"] for row in rows[:2]} == {1, 2}


async def test_a_chunk_without_a_vector_of_the_active_model_is_found_by_its_words(project: Project, user: UUID) -> None:
    await project.owner.execute("delete from ingest.embeddings where content_sha256 = $1", key_of("Ships pass by."))
    rows = await search(project, user, "ships")
    (found,) = [row for row in rows if row["content"] == "Ships pass by."]
    assert (found["vector_rank"], found["similarity"], found["text_rank"]) == (None, None, 1)


async def test_without_an_active_model_the_operator_is_named(project: Project, user: UUID) -> None:
    await project.owner.execute("update ingest.embedding_models set active = false")
    with pytest.raises(asyncpg.PostgresError, match="No embedding model is active") as refused:
        await search(project, user, "whales")
    assert refused.value.sqlstate == "IG006"


async def test_another_models_vectors_are_not_compared(project: Project, user: UUID) -> None:
    model = await project.owner.fetchval("select ingest.add_embedding_model('openai', 'small', 3)")
    await project.owner.execute("select ingest.activate_embedding_model($1)", model)
    assert contents(await search(project, user, "whales", [1.0, 0.0, 0.0])) == ["The whales sing at night."]
    await project.worker.execute(
        "insert into ingest.embeddings (model_id, tenant_id, content_sha256, embedding) values ($1, $2, $3, $4)",
        model, user, key_of("Ships pass by."), HalfVector([1, 0, 0]),
    )  # fmt: skip
    assert len(await search(project, user, "whales", [1.0, 0.0, 0.0])) == 2


async def test_a_stale_document_says_so_until_it_is_published_again(project: Project, user: UUID) -> None:
    stored = await project.ready(user, "c.txt", "Old herrings.")
    await project.overwrite(stored)
    assert (await search(project, user, "herrings"))[0]["stale"] is True
    await project.ingest(await project.claim_one(), ["New herrings."])
    row = (await search(project, user, "herrings"))[0]
    assert (row["stale"], row["content"]) == (False, "New herrings.")


async def test_a_tenant_is_searched_in_its_own_language(project: Project) -> None:
    user = await project.user()
    await project.owner.execute("update public.tenants set language = 'german'")
    await project.ready(user, "a.txt", "Die Häuser am See", "Nothing of that kind")
    assert (await search(project, user, "Häusern"))[0]["text_rank"] == 1
    assert all(
        row["text_rank"] is None for row in await search(project, user, "Häusern", filters={"language": "english"})
    )


async def test_words_are_looked_for_in_every_language_of_the_callers_tenants(project: Project, user: UUID) -> None:
    tenant = await project.organisation(reader=user)
    await project.owner.execute("update public.tenants set language = 'german' where id = $1", tenant)
    await project.ready(tenant, "a.txt", "Die Häuser am See")
    for query, found in (("Haus", "Die Häuser am See"), ("whale", "The whales sing at night.")):
        assert [row["content"] for row in await search(project, user, query) if row["text_rank"]] == [found]


async def test_a_person_searches_all_their_tenants_and_no_other(project: Project, user: UUID) -> None:
    mine, foreign = await project.organisation(reader=user), await project.organisation()
    for tenant in (mine, foreign):
        await project.ready(tenant, "a.txt", f"Whales of {tenant}")
    found = contents(await search(project, user, "whales", vector_of(f"Whales of {foreign}"), count=100))
    assert sorted(found) == sorted(
        ["The whales sing at night.", "Ships pass by.", "Bees dance to tell where flowers are.", f"Whales of {mine}"]
    )


async def test_a_user_whose_tenant_is_not_made_yet_finds_nothing(project: Project) -> None:
    assert await search(project, uuid4(), "whales") == []


async def test_filters_narrow(project: Project, user: UUID) -> None:
    bees = await project.owner.fetchval("select id from public.documents where name like '%bees%'")
    tenant = await project.organisation(reader=user)
    await project.ready(tenant, "a.txt", "Whales elsewhere")
    everything = 4
    for filters, expected in (
        ({}, everything),
        ({"tenant_ids": [str(user)]}, 3),
        ({"tenant_ids": [str(user), str(tenant)]}, everything),
        ({"tenant_ids": []}, 0),
        ({"tenant_ids": [None]}, 0),
        ({"document_ids": [str(bees)]}, 1),
        ({"document_ids": []}, 0),
        ({"document_ids": [str(bees)], "tenant_ids": [str(tenant)]}, 0),
        ({"name_prefix": f"{user}/reports/"}, 2),
        ({"name_prefix": "%"}, 0),
        ({"mime_types": ["text/plain"]}, everything),
        ({"mime_types": ["application/pdf"]}, 0),
        ({"language": "english"}, everything),
    ):  # fmt: skip
        rows = await search(project, user, "whales", count=100, filters=filters)
        assert len(rows) == expected, filters


async def test_filters_never_widen(project: Project, user: UUID) -> None:
    stranger = await project.user()
    theirs = await project.ready(stranger, "secret.txt", "Secret whales")
    for filters in (
        {"tenant_ids": [str(stranger)]},
        {"document_ids": [str(theirs)]},
        {"tenant_ids": [str(stranger)], "document_ids": [str(theirs)]},
        {"name_prefix": str(stranger)},
    ):
        assert await search(project, user, "secret whales", vector_of("Secret whales"), filters=filters) == []
    mixed = {"tenant_ids": [str(stranger), str(user)]}
    assert len(await search(project, user, "whales", vector_of("Secret whales"), filters=mixed)) == 3


async def test_the_helper_behind_the_text_list_names_the_callers_tenants_itself(project: Project, user: UUID) -> None:
    # It runs with its owner's rights, so what it is asked for must not be what it gives.
    stranger = await project.user()
    await project.ready(stranger, "secret.txt", "Secret whales")
    async with as_user(project.admin, user):
        rows = await project.admin.fetch(
            "select c.content from ingest.text_hits('whale'::tsquery, $1, null, 100, 5000) h"
            "  join public.chunks c on c.id = h.chunk_id",
            [stranger],
        )
        count = await project.admin.fetchval(
            "select count(*) from ingest.text_hits('whale'::tsquery, null, null, 100, 5000)"
        )
    assert rows == []
    assert count == 1
