"""Cheap first: what the local parser reads well stays here, and a service's answer is compared with the file's text."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from local import samples
from tests.integration.remote_world import World
from tests.reading import Reader
from tests.remote_parser import pages


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A PDF with a good text layer."""
    directory = tmp_path_factory.mktemp("samples")
    samples.write(directory)
    return min(directory.glob("*.pdf"), key=lambda path: path.stat().st_size).read_bytes()


async def test_cheap_first_reads_text_formats_and_good_pdfs_here_and_says_why(
    remote: World, tenant: UUID, paper: bytes
) -> None:
    await remote.upload(tenant)
    await remote.upload(tenant, "paper.pdf", paper)
    await remote.work(cheap_first=True)
    assert remote.parser.submitted == []
    states = await remote.sql.owner.fetch("select state from public.documents")
    assert [row["state"] for row in states] == ["ready", "ready"]
    reasons = {detail["reason"]: detail for detail in await remote.details() if "reason" in detail}
    assert reasons["text_format"] == {"parser": "local", "reason": "text_format"}
    layer = reasons["text_layer"]
    assert (layer["parser"], layer["text_pages"], layer["garbage"]) == ("local", layer["pages"], 0)


async def test_cheap_first_sends_a_scan_away_and_says_why(remote: World, tenant: UUID, scan: bytes) -> None:
    await remote.upload(tenant, "scan.pdf", scan)
    await remote.work(cheap_first=True)
    assert remote.parser.submitted == [scan]
    assert {"parser": "scripted", "reason": "needs_ocr"} in await remote.details()
    remote.parser.answers = [pages("What the scan says.")]
    await remote.poll()
    await remote.work(cheap_first=True)
    assert await remote.sql.owner.fetchval("select state from public.documents") == "ready"


@pytest.fixture
def scan() -> bytes:
    """A PDF without any text."""
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas("unused")
    canvas.rect(100, 100, 200, 200, fill=1)
    canvas.showPage()
    return bytes(canvas.getpdfdata())


async def test_a_summary_is_noted_and_the_document_is_published_all_the_same(
    remote: World, tenant: UUID, paper: bytes
) -> None:
    await remote.upload(tenant, "paper.pdf", paper)
    await remote.work()
    remote.parser.answers = [pages("This document is about a harbour and its rules.")]
    await remote.poll()
    await remote.work()
    assert await remote.sql.owner.fetchval("select state from public.documents") == "ready"
    parse = await remote.parse()
    assert parse["fidelity"] < 0.3
    assert "summarised" in parse["notes"][0]
    assert any(detail.get("code") == "parse_fidelity_low" for detail in await remote.details())


async def test_the_same_text_in_another_layout_is_faithful(
    remote: World, tenant: UUID, paper: bytes, tmp_path: Path
) -> None:
    layer = await Reader(tmp_path)(paper, "paper.pdf")
    await remote.upload(tenant, "paper.pdf", paper)
    await remote.work()
    remote.parser.answers = [pages(*(page.markdown.replace("\n", "\n\n> ") for page in layer.pages))]
    await remote.poll()
    await remote.work()
    parse = await remote.parse()
    assert parse["fidelity"] > 0.95
    assert parse["notes"] == []
