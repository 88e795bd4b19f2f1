"""A large file over a line that keeps breaking: uploaded by tus-js-client, read by a worker whose memory is watched.

python -m tests.large_upload 200     prints its report as one line of JSON
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

import asyncpg
import psutil  # type: ignore[import-untyped]

from local.stack import Stack
from local.worker_process import working
from tests.cutting_line import cutting_line
from tests.integration.tus_js import TusJs, tus_js
from tests.people import Person, Project

MB = 1024 * 1024
CUTS = 10
MOST_RSS_MB = 200


@dataclass(frozen=True)
class Report:
    """What came of it; sizes in megabytes."""

    megabytes: float
    cuts: int
    state: str
    documents: int
    generation: int
    jobs: int
    attempts: int
    size_is_right: bool
    worker_rss_before: float
    worker_rss_most: float
    seconds: float

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        right = {
            f"{CUTS} cuts": self.cuts == CUTS,
            "one ready document": (self.state, self.documents, self.generation) == ("ready", 1, 1),
            "one job in one attempt": (self.jobs, self.attempts) == (1, 1),
            "the size": self.size_is_right,
            f"a worker below {MOST_RSS_MB} MB": self.worker_rss_most < MOST_RSS_MB,
        }
        return [what for what, holds in right.items() if not holds]


def write_pdf(path: Path, size: int) -> None:
    """Write a PDF of one page of text and a picture's worth of noise, some `size` bytes long."""
    text = b"BT /F 12 Tf 72 720 Td (The harbour master keeps the long ledger of every arrival.) Tj ET"
    offsets: list[int] = []
    with path.open("wb") as file:

        def add(*body: bytes) -> None:
            offsets.append(file.tell())
            file.write(b"%d 0 obj\n" % len(offsets))
            file.writelines(body)
            file.write(b"\nendobj\n")

        file.write(b"%PDF-1.7\n")
        add(b"<< /Type /Catalog /Pages 2 0 R >>")
        add(b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>")
        add(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources << /Font << /F "
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> /XObject << /I 5 0 R >> >> >>"
        )
        add(b"<< /Length %d >>\nstream\n" % len(text), text, b"\nendstream")
        add(
            b"<< /Type /XObject /Subtype /Image /Width 1024 /Height %d /BitsPerComponent 8 /ColorSpace /DeviceGray "
            b"/Length %d >>\nstream\n" % (size // 1024, size),
            *(os.urandom(MB) for _ in range(size // MB)),
            b"\nendstream",
        )
        start = file.tell()
        file.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(offsets) + 1))
        file.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
        file.write(b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, start))


@contextlib.asynccontextmanager
async def _watched(pid: int, seen: list[int]) -> AsyncIterator[None]:
    process = psutil.Process(pid)

    async def watch() -> None:
        while True:
            seen.append(process.memory_info().rss)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


async def run(
    stack: Stack, tus: TusJs, project: Project, person: Person, size: int, log: Path, seconds: float = 90
) -> Report:
    """Upload `size` bytes over ten breaks and wait until the worker has read them."""
    began = time.monotonic()
    file = tus.directory / "large.pdf"
    write_pdf(file, size)
    length = file.stat().st_size
    session = await person.client.auth.get_session()
    assert session is not None
    headers = {"apikey": stack.publishable_key, "authorization": f"Bearer {session.access_token}"}
    small, large = f"{person.folder}/small.pdf", f"{person.folder}/large.pdf"
    seen: list[int] = []
    async with working(stack, log, SLUICE_MAX_FILE_BYTES=str(2 * length)) as worker:
        warm = tus.directory / "small.pdf"
        write_pdf(warm, MB)
        await tus.upload(headers, "documents", small, warm)
        await project.settled(small)
        async with _watched(worker.pid, seen):
            await asyncio.sleep(0.1)
            before = max(seen)
            async with cutting_line(
                stack.server.port, [length * cut // (CUTS + 1) for cut in range(1, CUTS + 1)]
            ) as line:
                await tus.upload(headers, "documents", large, file, port=line.port)
            await project.settled(large, seconds=seconds)
    documents = await project.connection.fetch("select * from public.documents where name = $1", large)
    jobs = await project.connection.fetch("select attempt from public.jobs where document_id = $1", documents[0]["id"])
    return Report(
        megabytes=round(length / MB, 1),
        cuts=line.broken,
        state=documents[0]["state"],
        documents=len(documents),
        generation=documents[0]["generation"],
        jobs=len(jobs),
        attempts=sum(job["attempt"] for job in jobs),
        size_is_right=documents[0]["size"] == length,
        worker_rss_before=round(before / MB, 1),
        worker_rss_most=round(max(seen) / MB, 1),
        seconds=round(time.monotonic() - began, 1),
    )


async def _alone(size: int) -> Report:
    """Run on a stack of its own whose limits are raised."""
    with tempfile.TemporaryDirectory(prefix="sluice-large-") as name:
        directory = Path(name)
        limit = size + 10 * MB
        async with (
            Stack(directory / "stack", durable=False, largest_upload=limit) as stack,
            tus_js(stack.api_url) as tus,
        ):
            connection = await asyncpg.connect(stack.admin_url)
            await connection.execute("update storage.buckets set file_size_limit = $1 where id = 'documents'", limit)
            person = await Person.sign_up(stack)
            try:
                return await run(stack, tus, Project(connection), person, size, directory / "worker.log", 600)
            finally:
                await person.close()
                await connection.close()


if __name__ == "__main__":
    report = asyncio.run(_alone(int(sys.argv[1]) * MB))
    print(json.dumps(asdict(report) | {"faults": report.faults}))
    sys.exit(bool(report.faults))
