"""From upload to search on the running stack, with a real worker: what a document's life does to its rows."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from local import samples
from local.stack import Stack
from local.worker_process import Worker, working
from tests.people import Person, Project, handbook
from worker.pipeline.embed.local import LocalEmbedder


@pytest.fixture(scope="module")
async def worker(stack: Stack, temporary_directory: Path) -> AsyncIterator[Worker]:
    """A worker for the tests of this module that do not need one of their own."""
    async with working(stack, temporary_directory / "pipeline-worker.log") as process:
        yield process


async def test_an_upload_becomes_searchable_for_its_owner_and_for_nobody_else(
    stack: Stack, worker: Worker, project: Project, ada: Person, bob: Person, embedder: LocalEmbedder
) -> None:
    path = await ada.upload("notes/harbour.md", handbook(12), mime_type="text/markdown")

    document = await project.settled(path)

    assert (document["state"], document["generation"], document["published_generation"]) == ("ready", 1, 1)
    question = "how many tonnes can the crane of berth 7 lift?"
    vector = (await embedder.embed([question]))[0].tolist()
    hits = await ada.search(question, vector)
    assert hits[0]["document_name"] == path
    assert any("lifts 21 tonnes" in hit["content"] for hit in hits[:3])
    assert hits[0]["stale"] is False
    narrowed = await ada.search(question, vector, filters={"name_prefix": f"{ada.folder}/other/"})
    assert narrowed == []
    assert await bob.search(question, vector) == []
    jobs = (await bob.client.table("jobs").select("*").execute()).data
    assert jobs == []


async def test_every_chunk_of_every_sample_is_the_slice_that_it_names_and_lies_on_its_pages(
    worker: Worker, project: Project, ada: Person, tmp_path: Path
) -> None:
    samples.write(tmp_path)
    files = sorted(tmp_path.iterdir())
    paths = [await ada.upload(file.name, file.read_bytes()) for file in files]

    for path in paths:
        document = await project.settled(path)
        pages = await project.connection.fetch(
            "select page, markdown from public.pages where parse_id = $1 order by page", document["published_parse_id"]
        )
        chunks = await project.connection.fetch(
            "select * from public.chunks where document_id = $1 order by ordinal", document["id"]
        )
        text, spans = "", []
        for row in pages:
            text += "\n\n" if spans else ""
            spans.append((row["page"], len(text), len(text) + len(row["markdown"])))
            text += row["markdown"]

        assert [row["ordinal"] for row in chunks] == list(range(document["chunk_count"]))
        for row in chunks:
            assert text[row["char_start"] : row["char_end"]] == row["content"]
            touched = [page for page, start, end in spans if start < row["char_end"] and end > row["char_start"]]
            assert (touched[0], touched[-1]) == (row["page_start"], row["page_end"])
            key = hashlib.sha256(f"{row['context']}\0{row['content']}".encode()).digest()
            assert key == row["content_sha256"]
    assert len(files) >= 5


async def test_an_overwrite_makes_generation_two_without_a_moment_without_chunks(
    stack: Stack, worker: Worker, project: Project, ada: Person
) -> None:
    path = await ada.upload("overwritten.md", handbook(20), mime_type="text/markdown")
    first = await project.settled(path)
    watcher = await asyncpg.connect(stack.admin_url)
    seen: set[tuple[int, int]] = set()

    async def watch() -> None:
        while True:
            row = await watcher.fetchrow(
                "select count(*) as all_of_them, count(*) filter (where content like '%second edition%') as new_ones"
                " from public.chunks where document_id = $1",
                first["id"],
            )
            seen.add((row["all_of_them"], row["new_ones"]))

    watching = asyncio.create_task(watch())
    await ada.upload("overwritten.md", handbook(25, edition="second"), mime_type="text/markdown", upsert=True)
    second = await project.settled(path, generation=2)
    watching.cancel()
    await asyncio.wait([watching])
    await watcher.close()

    assert (second["id"], second["generation"], second["published_generation"]) == (first["id"], 2, 2)
    assert second["chunk_count"] > first["chunk_count"]
    assert {total for total, _ in seen} <= {first["chunk_count"], second["chunk_count"]}
    assert (first["chunk_count"], 0) in seen


async def test_a_small_edit_embeds_only_the_chunks_that_changed(worker: Worker, project: Project, ada: Person) -> None:
    path = await ada.upload("edited.md", handbook(40), mime_type="text/markdown")
    document = await project.settled(path)
    before = await project.embedded(path)
    edited = handbook(40).replace(b"Its crane lifts 60 tonnes", b"Its crane lifts 61 tonnes")

    await ada.upload("edited.md", edited, mime_type="text/markdown", upsert=True)
    await project.settled(path, generation=2)

    assert before == document["chunk_count"]
    assert await project.embedded(path) - before == 1


async def test_a_move_changes_one_row_and_embeds_nothing(worker: Worker, project: Project, ada: Person) -> None:
    path = await ada.upload("here.md", handbook(8), mime_type="text/markdown")
    before = await project.settled(path)
    jobs, vectors = await project.count("public.jobs", ada.id), await project.count("ingest.embeddings", ada.id)

    await ada.client.storage.from_("documents").move(path, f"{ada.folder}/elsewhere/there.md")

    after = await project.document(f"{ada.folder}/elsewhere/there.md")
    assert (after["id"], after["generation"], after["state"]) == (before["id"], 1, "ready")
    assert await project.count("public.jobs", ada.id) == jobs
    assert await project.count("ingest.embeddings", ada.id) == vectors


async def test_removal_takes_document_and_chunks_at_once_and_the_sweep_the_rest(
    stack: Stack, worker: Worker, project: Project, ada: Person
) -> None:
    path = await ada.upload("gone.md", handbook(8), mime_type="text/markdown")
    await project.settled(path)

    await ada.client.storage.from_("documents").remove([path])

    for table in ("public.documents", "public.chunks"):
        assert await project.count(table, ada.id) == 0
    visible = (await ada.client.table("pages").select("page").execute()).data
    assert visible == []
    as_worker = await asyncpg.connect(stack.worker_database_url)
    await as_worker.execute("select ingest.sweep_parses(interval '0'), ingest.sweep_embeddings(interval '0')")
    await as_worker.close()
    for table in ("public.pages", "ingest.parses", "ingest.embeddings"):
        assert await project.count(table, ada.id) == 0


async def test_an_overwrite_by_a_broken_file_leaves_the_published_chunks_searchable_and_stale(
    worker: Worker, project: Project, ada: Person, embedder: LocalEmbedder
) -> None:
    path = await ada.upload("fine.md", handbook(6), mime_type="text/markdown")
    first = await project.settled(path)

    await ada.upload("fine.md", b"%PDF-1.7\n" + os.urandom(4000), upsert=True)
    broken = await project.settled(path, generation=2)

    assert (broken["state"], broken["error_code"]) == ("failed", "file_corrupt")
    assert broken["published_generation"] == 1
    hits = await ada.search("berth 3", (await embedder.embed(["berth 3"]))[0].tolist())
    assert len(hits) == first["chunk_count"]
    assert all(hit["stale"] for hit in hits)


async def test_same_bytes_are_parsed_and_embedded_once_in_a_tenant_and_anew_in_another(
    worker: Worker, project: Project, ada: Person, bob: Person
) -> None:
    content = handbook(9, edition="shared")
    first = await ada.upload("one.md", content, mime_type="text/markdown")
    await project.settled(first)
    second = await ada.upload("two.md", content, mime_type="text/markdown")
    foreign = await bob.upload("three.md", content, mime_type="text/markdown")
    await project.settled(second)
    await project.settled(foreign)

    assert await project.count("ingest.parses", ada.id) == 1
    assert await project.count("ingest.parses", bob.id) == 1
    assert await project.embedded(second) == 0
    assert await project.embedded(foreign) == await project.embedded(first) > 0


async def test_same_bytes_of_another_type_are_parsed_anew(worker: Worker, project: Project, ada: Person) -> None:
    content = b"Pier,Depth\nNorth,12 m\nSouth,9 m\n"
    text = await project.settled(await ada.upload("piers.md", content, mime_type="text/markdown"))
    table = await project.settled(await ada.upload("piers.csv", content, mime_type="text/csv"))

    assert (text["mime_type"], table["mime_type"]) == ("text/markdown", "text/csv")
    assert text["published_parse_id"] != table["published_parse_id"]


async def test_a_move_while_the_job_runs_still_ends_in_a_ready_document(
    worker: Worker, project: Project, ada: Person
) -> None:
    path = await ada.upload("moving.md", handbook(150), mime_type="text/markdown")
    await project.until(
        "select stage from public.jobs where tenant_id = $1::uuid", ada.id, when=lambda row: row["stage"] == "embed"
    )

    await ada.client.storage.from_("documents").move(path, f"{ada.folder}/moved.md")

    document = await project.settled(f"{ada.folder}/moved.md")
    assert (document["state"], document["generation"]) == ("ready", 1)


async def test_names_with_quotes_spaces_and_dots_are_only_names(worker: Worker, project: Project, ada: Person) -> None:
    names = ["it's a 'quoted' name.md", "two  spaces (and) parentheses.md", "...dots..md", "$1; drop table jobs --.md"]

    paths = [await ada.upload(name, handbook(2), mime_type="text/markdown") for name in names]

    for path in paths:
        assert (await project.settled(path))["state"] == "ready"


async def test_a_name_that_climbs_out_of_its_folder_is_refused_or_stays_a_name(
    stack: Stack, worker: Worker, project: Project, ada: Person, bob: Person
) -> None:
    outside = f"{ada.folder}/../{bob.folder}/planted.md"
    answer = await ada.http.post(
        f"{stack.api_url}/storage/v1/object/documents/{ada.folder}/%2e%2e/{bob.folder}/planted.md",
        content=handbook(2),
        headers={
            "apikey": stack.publishable_key,
            "authorization": f"Bearer {(await ada.client.auth.get_session()).access_token}",  # type: ignore[union-attr]
            "content-type": "text/markdown",
        },
    )

    assert await project.count("public.documents", bob.id) == 0
    assert answer.status_code == 400 or (await project.settled(outside))["tenant_id"] == ada.id
