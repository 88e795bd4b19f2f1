"""Files that cannot be read: each ends at once with its own code and a message to act on, and harms nothing else."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from local.stack import Stack
from local.worker_process import working
from tests import hostile
from tests.people import Person, Project, handbook

MB = 1024 * 1024
GROWTH = 50 * MB
"""What the worker may grow by over all of these together; the bombs unpack to some three gigabytes each."""


def printed(*lines: str, password: str | None = None) -> bytes:
    """Return a one-page PDF with a text layer, encrypted when a password is given."""
    file = io.BytesIO()
    canvas = Canvas(file, encrypt=StandardEncryption(password) if password else None)
    for number, line in enumerate(lines):
        canvas.drawString(72, 720 - 16 * number, line)
    canvas.showPage()
    canvas.save()
    return file.getvalue()


def scanned() -> bytes:
    """Return a PDF of two pages that hold a drawing each and no text."""
    file = io.BytesIO()
    canvas = Canvas(file)
    for _ in range(2):
        canvas.rect(72, 72, 300, 300, fill=1)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Return each bad file with the code it ends with."""
    whole = printed(*(f"Line {number} of a report that was cut short." for number in range(40)))
    return {
        "encrypted.pdf": (printed("Secret figures.", password="sesame"), "pdf_encrypted"),
        "truncated.pdf": (whole[: len(whole) // 2], "file_corrupt"),
        "empty.txt": (b"", "file_empty"),
        "scanned.pdf": (scanned(), "needs_ocr"),
        "bomb.pdf": (hostile.flate_bomb_pdf(), "parse_out_of_memory"),
        "bomb.docx": (hostile.zip_bomb_docx(), "archive_too_large"),
        "20000-pages.pdf": (hostile.many_pages_pdf(20_000), "too_many_pages"),
        "program.bin": (bytes(range(256)) * 40, "file_unsupported"),
    }


async def test_bad_files_end_with_their_code_while_good_ones_become_ready_and_memory_stays_flat(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, bob: Person
) -> None:
    files = bad_files()
    async with working(stack, temporary_directory / "bad-input-worker.log") as worker:
        first = await ada.upload("before.md", handbook(3), mime_type="text/markdown")
        await project.settled(first)
        process = psutil.Process(worker.pid)
        before, most = process.memory_info().rss, 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        bad = {name: await ada.upload(name, content) for name, (content, _) in files.items()}
        good = [await person.upload("good.md", handbook(4), mime_type="text/markdown") for person in (ada, bob)]
        ended = {name: await project.settled(path) for name, path in bad.items()}
        readied = [await project.settled(path) for path in good]
        watching.cancel()

    assert {name: row["error_code"] for name, row in ended.items()} == {name: code for name, (_, code) in files.items()}
    assert {row["state"] for row in ended.values()} == {"failed"}
    assert all(row["error_message"].endswith(".") and len(row["error_message"]) > 30 for row in ended.values())
    attempts = await project.connection.fetch(
        "select distinct attempt from public.jobs where tenant_id = $1::uuid and state = 'discarded'", ada.id
    )
    assert [row["attempt"] for row in attempts] == [1]  # at once: nothing was tried again
    assert [row["state"] for row in readied] == ["ready", "ready"]
    assert most - before < GROWTH


async def test_html_named_pdf_is_read_as_what_it_is(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    async with working(stack, temporary_directory / "bad-input-worker.log"):
        html = b"<!doctype html><html><body><h1>Tides</h1><p>High water is at noon.</p></body></html>"
        document = await project.settled(await ada.upload("report.pdf", html, mime_type="application/pdf"))

    assert (document["state"], document["mime_type"], document["title"]) == ("ready", "text/html", "Tides")


async def test_nul_and_lone_surrogates_are_left_out_and_the_rest_is_searchable(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    async with working(stack, temporary_directory / "bad-input-worker.log"):
        content = b"# Log\n\nThe gate\x00 opened.\n\nThen \xed\xa0\x80 it closed.\n\nEnd of log.\n"
        document = await project.settled(await ada.upload("log.md", content, mime_type="text/markdown"))

    assert document["state"] == "ready"
    text = await project.connection.fetchval(
        "select string_agg(content, '' order by ordinal) from public.chunks where document_id = $1", document["id"]
    )
    assert "\0" not in text
    assert all(words in text for words in ("The gate", "it closed", "End of log"))


async def test_a_file_above_the_limit_is_refused_before_its_bytes_are_fetched(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    log = temporary_directory / "bad-input-worker.log"
    async with working(stack, log, SLUICE_MAX_FILE_BYTES="1000"):
        document = await project.settled(await ada.upload("large.md", handbook(40), mime_type="text/markdown"))

    assert (document["state"], document["error_code"]) == ("failed", "file_too_large")
