"""The watchdog: a loop that is really stuck ends its process, and one that was only suspended does not."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from local import deno
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


async def _ended(process: asyncio.subprocess.Process) -> int | None:
    """Wait for the end without reading what it writes."""
    while process.returncode is None:  # noqa: ASYNC110 - wait() would wait for its pipes too
        await asyncio.sleep(0.05)
    return process.returncode
