"""What a file orders its reader to do is not done, and files that refer to themselves end."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests import hostile_active
from tests.conftest import Counted
from tests.hostile_active import PLAIN, SECRET
from tests.reading import Reader
from worker.errors import Rejected
from worker.pipeline.parse.local import LocalParser

ACTIVE, RECURSIVE = hostile_active.active(), hostile_active.recursive()


@pytest.mark.parametrize("name", ACTIVE)
async def test_a_files_program_is_neither_run_nor_shown(
    read: Reader, parser: LocalParser, name: str, counted: Counted
) -> None:
    called = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    parsed = await read(hostile_active.active(server.sockets[0].getsockname()[1])[name], name, parser)
    server.close()

    assert PLAIN in parsed.text
    assert SECRET not in parsed.text
    assert "root:" not in parsed.text
    assert not called.is_set()
    counted("files with programs in them")


@pytest.mark.parametrize("name", RECURSIVE)
async def test_a_file_that_refers_to_itself_ends(
    read: Reader, parser: LocalParser, name: str, counted: Counted
) -> None:
    begun = time.monotonic()
    try:
        parsed = await read(RECURSIVE[name], name, parser)
    except Rejected as refused:
        ended = refused.code
    else:
        ended = parsed.text
    assert ended
    assert time.monotonic() - begun < 20
    counted("files that refer to themselves")
