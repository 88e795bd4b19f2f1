"""The watchdog: a loop that is really stuck ends its process, and one that was only suspended does not."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from local import deno
from local.errors import StackError
from local.stack import Stack
from local.worker_process import working
from tests.integration.killing_worker import STUCK
from tests.people import Person, Project
from worker.queue.watchdog import WEDGED_EXIT_CODE

SECONDS = 1.0


@asynccontextmanager
async def process(way: str, seconds: float = SECONDS) -> AsyncIterator[asyncio.subprocess.Process]:
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tests.integration.wedged", way, str(seconds),
        cwd=deno.REPOSITORY, env=deno.environment({"PYTHONPATH": str(deno.REPOSITORY)}),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert made.stdout is not None
        async with asyncio.timeout(30):
            assert await made.stdout.readline() == b"turning\n"
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.communicate()  # what nobody read is what keeps its pipes open


async def test_a_blocked_loop_ends_the_process_with_its_code_a_line_and_all_stacks() -> None:
    async with process("asleep") as stuck:
        began = time.monotonic()
        async with asyncio.timeout(20):
            out, err = await stuck.communicate()
        took = time.monotonic() - began
    assert stuck.returncode == WEDGED_EXIT_CODE == 70
    assert 0.8 * SECONDS <= took < SECONDS + 5  # the last turn was a little before
    (line,) = [json.loads(line) for line in out.decode().splitlines()]
    assert (line["level"], line["exit_code"]) == ("critical", 70)
    assert line["event"].startswith("the event loop is stuck")
    assert line["seconds"] >= SECONDS
    said = err.decode()
    assert "wedged.py" in said
    assert "in main" in said  # the frame that blocks
    assert said.count("Thread 0x") + said.count("Current thread 0x") >= 2


async def test_code_that_keeps_the_interpreters_lock_is_ended_too() -> None:
    async with process("holding", 0.5) as stuck:
        async with asyncio.timeout(20):
            _, err = await stuck.communicate()
    assert stuck.returncode == 1
    assert "Timeout (" in err.decode()
    assert "re/__init__.py" in err.decode()


async def test_a_loop_that_is_stuck_in_writing_its_log_is_ended_though_nobody_reads() -> None:
    async with process("full pipe") as stuck, asyncio.timeout(20):
        assert await _ended(stuck) == WEDGED_EXIT_CODE


async def test_a_process_that_was_suspended_for_longer_is_left_alone() -> None:
    async with process("turning") as suspended:
        suspended.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2 * SECONDS)
        suspended.send_signal(signal.SIGCONT)
        await asyncio.sleep(2 * SECONDS)
        assert suspended.returncode is None


async def test_a_worker_that_hangs_ends_with_its_code_and_its_job_goes_to_another(
    stack: Stack, project: Project, ada: Person, tmp_path: Path
) -> None:
    log = tmp_path / "worker.log"
    settings = {"SLUICE_WEDGED_SECONDS": "1", "SLUICE_LEASE_SECONDS": "2"}
    path = await ada.upload("stuck.md", STUCK, mime_type="text/markdown")
    async with working(stack, log, module="tests.integration.killing_worker", **settings) as worker:
        with pytest.raises(StackError, match=f"exit status {WEDGED_EXIT_CODE}"):
            await asyncio.wait_for(worker.ended(), 30)
    assert "the event loop is stuck" in log.read_text()
    assert "killing_worker.py" in log.read_text()  # the stack that says where
    async with working(stack, log, **settings):  # one that reads this file like any other
        assert (await project.settled(path))["state"] == "ready"
    assert [event["event"] for event in await project.events(path)].count("rescue") == 1
    await project.connection.execute("delete from ingest.workers")


async def _ended(process: asyncio.subprocess.Process) -> int | None:
    """Wait for the end without reading what it writes."""
    while process.returncode is None:  # noqa: ASYNC110 - wait() would wait for its pipes too
        await asyncio.sleep(0.05)
    return process.returncode
