"""Broken files by the thousand, each by a rule and a seed, read by a real worker that must outlive them all.

python -m tests.mutants 10000 [SEED]     prints its report as one line of JSON
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil  # type: ignore[import-untyped]
from docx import Document
from openpyxl import Workbook
from pptx import Presentation
from reportlab.pdfgen.canvas import Canvas

from local.stack import Stack
from local.worker_process import working
from tests.people import Person, Project

MB = 1024 * 1024
MOST_RSS_MB = 250
_FOREIGN = [
    b"<!ENTITY x SYSTEM 'file:///etc/passwd'>&x;", b"<script>", b"]]>", b"\0\0\0\0", b"endobj endobj", b"stream",
    b"/Kids [1 0 R]", b"<w:tbl>", b"\xed\xa0\x80", b"\xe2\x80\xae", b"PK\x03\x04", b'"', b"<table><tr><td>" * 40,
]  # fmt: skip
_UNREAD = (
    "select count(*) from public.documents where tenant_id = any ($1::uuid[]) and state in ('pending', 'processing')"
)


@dataclass(frozen=True)
class Report:
    """How the documents ended, and how the worker did."""

    seed: int
    files: int
    ready: int
    refused: int
    by_code: dict[str, int]
    unfinished: int
    several_attempts: int
    worker_deaths: int
    worker_rss_most: float
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        right = {
            "a worker that lives": self.worker_deaths == 0,
            "every file ended": self.unfinished == 0 and self.ready + self.refused == self.files,
            "both ends": self.ready > 0 and self.refused > 0,
            f"a worker below {MOST_RSS_MB} MB": self.worker_rss_most < MOST_RSS_MB,
        }
        return [what for what, holds in right.items() if not holds]


def originals() -> dict[str, bytes]:
    """Return one whole file of each kind, by its extension."""
    out = {name: io.BytesIO() for name in ("pdf", "docx", "pptx", "xlsx")}
    canvas = Canvas(out["pdf"])
    for page in range(1, 4):
        for line in range(30):
            canvas.drawString(72, 720 - 20 * line, f"Letter {page}, line {line}: the tide turned at {line} past six.")
        canvas.showPage()
    canvas.save()

    document = Document()
    document.add_heading("Pilot's handbook", 1)
    for number in range(12):
        document.add_paragraph(f"Buoy {number} is lit and bears north.", style="List Number" if number % 2 else None)
    table = document.add_table(3, 3)
    for at, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"cell {at}"
    document.save(out["docx"])

    slides = Presentation()
    for number in range(3):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = "first point\nsecond point"
    slides.save(out["pptx"])

    book = Workbook()
    sheet: Any = book.active
    for row in range(30):
        sheet.append([row, f"berth {row}", row * 1.5, f"=A{row + 1}*2"])
    book.save(out["xlsx"])

    rows = "".join(f"<tr><td>{n}<td>berth {n}</tr>" for n in range(30))
    html = f"<!doctype html><html><body><h1>Berths</h1><table>{rows}</table><ul><li>a<li>b</ul></body></html>"
    csv = "number,berth,depth\n" + "".join(f'{n},"berth {n}",{n * 3}\n' for n in range(60))
    entry = "- entry *{0}* of the `log`\n\n| a | b |\n|---|---|\n| {0} | x |\n\n"
    markdown = "# Log\n\n" + "".join(entry.format(n) for n in range(20))
    texts = {"html": html.encode(), "csv": csv.encode(), "md": markdown.encode()}
    return {name: file.getvalue() for name, file in out.items()} | texts


def _flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.randrange(1, 30)):
        data[chance.randrange(len(data))] = chance.randrange(256)


def _truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(1, len(data)) :]


def _remove(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randrange(1, 200)]


def _repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    piece = bytes(data[start : start + chance.randrange(1, 200)])
    at = chance.randrange(len(data))
    data[at:at] = piece * chance.randrange(1, 50)


def _numbers(data: bytearray, chance: random.Random) -> None:
    """Put an extreme number where one stands: lengths, offsets, counts, references."""
    digits = [at for at, byte in enumerate(data) if 48 <= byte <= 57]
    for _ in range(min(len(digits), 8)):
        at = chance.choice(digits)
        extreme = chance.choice([b"0", b"-1", b"65536", b"2147483647", b"4294967295", b"99999999999999999999"])
        data[at : at + 1] = extreme


def _words(data: bytearray, chance: random.Random) -> None:
    """Put a word of another trade in."""
    at = chance.randrange(len(data))
    data[at:at] = chance.choice(_FOREIGN)


RULES: list[Callable[[bytearray, random.Random], None]] = [_flip, _truncate, _remove, _repeat, _numbers, _words]


def mutant(whole: dict[str, bytes], number: int, seed: int) -> tuple[str, bytes]:
    """Return the mutant of this number, by name and bytes: the same for the same seed."""
    chance = random.Random(f"{seed}/{number}")
    kind = sorted(whole)[number % len(whole)]
    data = whole[kind]
    # A flipped bit in a packed part is only ever a wrong checksum: in every other package the part itself is broken.
    if kind in ("docx", "pptx", "xlsx") and chance.random() < 0.7:
        data = _within(data, chance)
    else:
        data = _broken(data, chance)
    return f"mutant-{number}.{kind}", data


def _broken(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if changed:
            chance.choice(RULES)(changed, chance)
    return bytes(changed)


def _within(data: bytes, chance: random.Random) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as packed, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        parts = [entry for entry in packed.namelist() if entry.endswith((".xml", ".rels"))]
        told = {name for name in parts if name.rsplit("/", 1)[-1] in ("document.xml", "sheet1.xml", "slide1.xml")}
        victims = {chance.choice(parts), *(told if chance.random() < 0.5 else ())}
        for name in packed.namelist():
            part = packed.read(name)
            # Its own entry's time, not now: a seed makes the same bytes at any hour.
            entry = zipfile.ZipInfo(name, packed.getinfo(name).date_time)
            made.writestr(entry, _broken(part, chance) if name in victims else part, zipfile.ZIP_DEFLATED)
    return out.getvalue()


async def run(stack: Stack, project: Project, people: list[Person], files: int, seed: int, log: Path) -> Report:
    """Upload the mutants and wait until a worker has given each its verdict."""
    began, whole = time.monotonic(), originals()
    tenants = [person.id for person in people]
    most, deaths = 0, 0
    limits = {"SLUICE_PARSE_SECONDS": "20", "SLUICE_PARSE_CPU_SECONDS": "10",
              "SLUICE_PARSE_MEMORY_BYTES": str(512 * MB)}  # fmt: skip
    async with working(stack, log, **limits) as worker:
        process = psutil.Process(worker.pid)

        async def send(person: Person, mine: range) -> None:
            for number in mine:
                name, content = mutant(whole, number, seed)
                await person.upload(name, content)

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.1)

        async def read() -> None:
            await asyncio.gather(*(send(p, range(at, files, len(people))) for at, p in enumerate(people)))
            await project.until(_UNREAD, tenants, when=lambda row: row["count"] == 0, seconds=3600)

        reading, dying, watching = (asyncio.create_task(what) for what in (read(), worker.ended(), watch()))
        await asyncio.wait([reading, dying], return_when=asyncio.FIRST_COMPLETED)
        deaths = int(dying.done())
        for task in (reading, dying, watching):
            task.cancel()
        await asyncio.gather(reading, dying, watching, return_exceptions=True)
    rows = await project.connection.fetch(
        "select d.state::text, d.error_code, max(j.attempt) as attempts from public.documents d"
        " join public.jobs j on j.document_id = d.id where d.tenant_id = any ($1::uuid[]) and d.name like '%/mutant-%'"
        " group by d.id, d.state, d.error_code",
        tenants,
    )
    states = Counter(row["state"] for row in rows)
    return Report(
        seed=seed,
        files=files,
        ready=states["ready"],
        refused=states["failed"],
        by_code=dict(Counter(row["error_code"] for row in rows if row["error_code"]).most_common()),
        unfinished=len(rows) - states["ready"] - states["failed"],
        several_attempts=sum(row["attempts"] > 1 for row in rows),
        worker_deaths=deaths,
        worker_rss_most=round(most / MB, 1),
        seconds=round(time.monotonic() - began, 1),
    )


async def _alone(files: int, seed: int) -> Report:
    with tempfile.TemporaryDirectory(prefix="sluice-mutants-") as name:
        directory = Path(name)
        async with Stack(directory / "stack", durable=False) as stack:
            connection = await asyncpg.connect(stack.admin_url)
            people = [await Person.sign_up(stack) for _ in range(4)]
            try:
                return await run(stack, Project(connection), people, files, seed, directory / "worker.log")
            finally:
                for person in people:
                    await person.close()
                await connection.close()


if __name__ == "__main__":
    report = asyncio.run(_alone(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
    print(json.dumps(asdict(report) | {"faults": report.faults}))
    sys.exit(bool(report.faults))
