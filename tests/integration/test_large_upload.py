"""A large file over a bad network becomes one document, and the worker does not grow by it."""

from __future__ import annotations

from pathlib import Path

from local.stack import Stack
from tests import large_upload
from tests.conftest import Counted
from tests.integration.tus_js import tus_js
from tests.people import Person, Project

MB = 1024 * 1024


async def test_20_mb_cut_ten_times_become_one_document_and_the_worker_stays_small(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, counted: Counted
) -> None:
    async with tus_js(stack.api_url) as tus:
        report = await large_upload.run(
            stack, tus, project, ada, 20 * MB, temporary_directory / "large-upload-worker.log"
        )

    assert report.faults == [], report
    assert report.worker_rss_most - report.worker_rss_before < 30
    counted("cuts survived by a 20 MB upload", report.cuts)
