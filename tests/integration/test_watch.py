"""`sluice jobs watch` and Ctrl-C, in a process of its own and on a terminal of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest

from tests.conftest import Database
from tests.database.project import Project
from tests.integration.test_jobs_commands import discarded, environment

SLUICE = [sys.executable, "-m", "worker"]
LISTENS = "select count(*) > 0 from pg_stat_activity where application_name = 'sluice listener'"


@pytest.fixture
async def project(database: Database) -> Project:
    return await Project(database).open()


class Watching:
    """A running `sluice jobs …`, whose lines are read as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> dict[str, Any]:
        """Return the next line's object."""
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return dict(json.loads(await self.process.stdout.readline()))

    async def event(self, name: str) -> dict[str, Any]:
        """Return the next event of this name."""
        while (said := await self.line())["event"] != name:
            pass
        return said

    async def end(self) -> tuple[int, str]:
        """Return the exit code and what stands on stderr."""
        async with asyncio.timeout(20):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()


@contextlib.asynccontextmanager
async def watching(database: Database, *arguments: str) -> AsyncIterator[Watching]:
    process = await asyncio.create_subprocess_exec(
        *SLUICE, "jobs", *arguments, env=os.environ | environment(database),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Watching(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def until_it_listens(project: Project) -> None:
    """Wait until the command's listener stands; its proof comes a moment later."""
    async with asyncio.timeout(20):
        while not await project.admin.fetchval(LISTENS):  # noqa: ASYNC110 - the database tells nobody
            await asyncio.sleep(0.02)


async def follow_one(project: Project, tenant: UUID) -> int:
    """Upload a file and publish it; return its job."""
    await project.upload(tenant, "harbour.txt")
    claim = await project.claim_one()
    await project.ingest(claim, ["text"])
    found: int = claim["job_id"]
    return found


async def test_every_event_is_told_once_and_in_order(database: Database, project: Project) -> None:
    tenant = await project.user()
    async with watching(database, "watch", "--json", "--interval", "0.2") as watch:
        assert watch.process.stderr is not None
        assert b"Ctrl-C" in await watch.process.stderr.readline()
        first = await follow_one(project, tenant)
        told = [await watch.line() for _ in range(3)]
        assert [(event["event"], event["job_id"]) for event in told] == [
            ("enqueue", first), ("claim", first), ("complete", first),
        ]  # fmt: skip
        assert told[0]["name"] == f"{tenant}/harbour.txt"
        await project.upload(tenant, "second.txt")
        assert (await watch.line())["name"] == f"{tenant}/second.txt"  # nothing was told again
        watch.process.send_signal(signal.SIGINT)
        code, errors = await watch.end()
        assert code == 130
        assert "Traceback" not in errors


async def test_an_upload_is_told_at_once_although_it_is_asked_seldom(database: Database, project: Project) -> None:
    async with watching(database, "watch", "--json", "--interval", "60") as watch:
        await until_it_listens(project)
        await asyncio.sleep(0.5)  # the proof is heard; what is uploaded before would be told by the first look
        await project.upload(await project.user())
        assert (await watch.line())["event"] == "enqueue"


async def test_watching_one_job_tells_its_history_and_ends_with_it(database: Database, project: Project) -> None:
    await project.upload(await project.user())
    claim = await project.claim_one()
    async with watching(database, "watch", "--json", "--interval", "0.2", str(claim["job_id"])) as watch:
        assert [(await watch.line())["event"] for _ in range(2)] == ["enqueue", "claim"]
        await project.ingest(claim, ["text"])
        assert (await watch.line())["event"] == "complete"
        assert (await watch.end())[0] == 0


async def test_watching_a_job_that_fails_ends_with_1(database: Database, project: Project) -> None:
    job = await discarded(project, await project.user(), "a.txt")
    async with watching(database, "watch", "--json", str(job)) as watch:
        assert (await watch.event("discard"))["error_code"] == "no_text"
        assert (await watch.end())[0] == 1


async def test_a_bulk_cancel_that_is_interrupted_says_how_far_it_came(database: Database, project: Project) -> None:
    tenant = await project.user()
    jobs = await project.enqueue(tenant, 150)
    holder = await database.connect("postgres")
    async with holder.transaction():
        await holder.execute("select 1 from public.jobs where id = $1 for update", jobs[-1])
        arguments = ("cancel", "--tenant", str(tenant), "--yes", "--json")
        async with watching(database, *arguments) as cancelling:
            await project.until("select count(*) = 149 from public.jobs where state = 'cancelled'")
            cancelling.process.send_signal(signal.SIGINT)
            said = await cancelling.line()
            code, errors = await cancelling.end()
    assert code == 130
    assert (said["matched"], said["done"], said["interrupted"]) == (150, 149, True)
    assert "Interrupted after 149 of 150." in errors


async def on_a_terminal(database: Database, *arguments: str, stop_at: bytes | None = None) -> tuple[int, bytes, bool]:
    """Run on a pseudo-terminal; return the exit code, the output, and whether the terminal is as it was."""
    main, side = pty.openpty()
    before = termios.tcgetattr(side)
    process = await asyncio.create_subprocess_exec(
        *SLUICE, *arguments, env=os.environ | environment(database) | {"TERM": "xterm", "COLUMNS": "200"},
        stdin=side, stdout=side, stderr=side, start_new_session=True,
    )  # fmt: skip
    output = b""
    async with asyncio.timeout(30):
        while process.returncode is None or output[-1:] == b"":
            output += await asyncio.to_thread(read_some, main)
            if stop_at is not None and stop_at in output:
                process.send_signal(signal.SIGINT)
                stop_at = None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(process.wait()), 0.05)
    output += await asyncio.to_thread(read_some, main)
    same = termios.tcgetattr(side) == before
    os.close(main)
    os.close(side)
    assert process.returncode is not None
    return process.returncode, output, same


def read_some(descriptor: int) -> bytes:
    import select

    ready, _, _ = select.select([descriptor], [], [], 0.2)
    return os.read(descriptor, 65536) if ready else b""


async def test_a_terminal_gets_a_table_in_which_names_are_no_markup(database: Database, project: Project) -> None:
    await project.upload(await project.user(), "[red]a\x1b[2J.txt")
    code, output, same = await on_a_terminal(database, "jobs", "list")
    assert (code, same) == (0, True)
    assert "┃" in output.decode()
    assert r"[red]a\u001b[2J.txt" in output.decode()
    assert b"\x1b[2J" not in output


async def test_ctrl_c_ends_a_watch_with_130_and_leaves_the_terminal_as_it_was(
    database: Database, project: Project
) -> None:
    code, output, same = await on_a_terminal(database, "jobs", "watch", stop_at=b"Ctrl-C ends it.")
    assert (code, same) == (130, True)
    assert b"Traceback" not in output
    assert b"\x1b[?1049h" not in output  # no other screen was opened


async def test_ctrl_c_at_the_question_is_130_and_changes_nothing(database: Database, project: Project) -> None:
    tenant = await project.user()
    await project.enqueue(tenant, 3)
    code, output, same = await on_a_terminal(
        database, "jobs", "cancel", "--tenant", str(tenant), stop_at=b"[y/N]"
    )  # fmt: skip
    assert (code, same) == (130, True)
    assert b"3 jobs of 1 tenant match: 3 available with no code." in output
    assert await project.owner.fetchval("select count(*) from public.jobs where state = 'cancelled'") == 0
