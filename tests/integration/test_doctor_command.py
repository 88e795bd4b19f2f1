"""`sluice doctor` as people and deploys call it: its own process, its exit codes, what it prints."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from local import deno
from tests.integration.installation import ALWAYS, Installation, look
from worker.operate.doctor.run import CHECKS
from worker.pipeline.parse import confine

_NUMBERS = {"x86_64": (272, 157, 317), "aarch64": (97, 167, 277)}  # unshare, prctl, seccomp


async def doctor(
    installation: Installation | None, *arguments: str, before: Callable[[], None] | None = None, **variables: str
) -> tuple[int, str, str]:
    """Run the command; returns its exit code and what it wrote."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "doctor", *arguments, cwd=deno.REPOSITORY,
        env=kept | (installation.environment if installation else {}) | variables, preexec_fn=before,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_nothing_is_found_on_a_healthy_stack_in_less_than_five_seconds(installation: Installation) -> None:
    began = time.monotonic()
    code, out, err = await doctor(installation, "--json")
    took = time.monotonic() - began

    told: dict[str, Any] = json.loads(out)
    assert [check["name"] for check in told["checks"]] == [check.name for check in CHECKS]
    assert {
        check["name"]: check["code"] for check in told["checks"] if check["status"] in ("warning", "failed")
    } == ALWAYS
    assert {check["code"] for check in told["checks"] if check["status"] == "skipped"} == {"not_used"}
    assert told["counts"] == {
        "ok": len(CHECKS) - 4 - len(ALWAYS), "warning": 0, "failed": len(ALWAYS), "skipped": 4
    }  # fmt: skip
    assert set(told["checks"][0]) == {"name", "layer", "status", "code", "message", "remedy", "milliseconds"}
    assert (code, err) == (1 if ALWAYS else 0, "")
    assert took < 5


async def test_it_only_reads(installation: Installation) -> None:
    # As a project is whose disk is full: all that wants to write fails, and the rest is looked at all the same.
    read_only = "alter role ingest_worker set default_transaction_read_only = on"
    async with installation.sql(read_only, "alter role ingest_worker reset default_transaction_read_only"):
        findings = await look(installation)

    ill = {each.name: each.code for each in findings if each.status in ("warning", "failed")}
    assert ill == {"server": "server_read_only"} | ALWAYS


async def test_a_deploy_asks_for_the_migrations_alone(installation: Installation) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    well = await doctor(installation, "--only", "migrations", "--json")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (well[0], [check["name"] for check in json.loads(well[1])["checks"]]) == (0, ["migrations"])
    # Of the processor, because other tests run beside this one.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 2

    last = "(select max(version) from supabase_migrations.schema_migrations)"
    async with installation.sql(
        "create table public.kept as select * from supabase_migrations.schema_migrations;"
        f" delete from supabase_migrations.schema_migrations where version = {last}",
        "insert into supabase_migrations.schema_migrations select * from public.kept on conflict do nothing;"
        " drop table public.kept",
    ):
        code, out, _ = await doctor(installation, "--only", "migrations")
    assert code == 1
    assert "migrations are not all applied: 1 is missing" in out

    # What keeps it from looking is told, and is a failure too.
    code, out, _ = await doctor(installation, "--only", "migrations", DATABASE_URL=installation.at(path="/nowhere"))
    assert (code, "There is no database nowhere" in out, "Not looked at: database_login" in out) == (1, True, True)
    code, out, _ = await doctor(None, "--only", "migrations")
    assert (code, "DATABASE_URL is not set." in out) == (1, True)


async def test_without_any_setting_it_says_which_are_missing_and_looks_at_the_rest() -> None:
    code, out, err = await doctor(None)

    assert code == 1
    assert "DATABASE_URL: is not set; SUPABASE_URL: is not set; SUPABASE_SECRET_KEY: is not set." in out
    assert "ok       machine   sandbox" in out
    assert err == ""


async def test_in_a_pipe_a_finding_is_a_line_and_its_remedy_another(installation: Installation) -> None:
    code, out, _ = await doctor(installation, "--only", "setting_names", "--only", "machine", SLUICE_SLOT="3")

    assert code == 0  # a warning is no failure
    lines = out.splitlines()
    assert lines[0] == "warning  settings  setting_names      SLUICE_SLOT is not a setting and has no effect."
    assert lines[1].strip() == "-> Rename it to SLUICE_SLOTS, if that is what is meant."
    assert lines[-1] == "4 ok, 1 warning, 0 failed, 0 skipped."


async def test_the_list_names_every_check_and_looks_at_nothing() -> None:
    code, out, _ = await doctor(None, "--list")
    assert (code, [line.split()[1] for line in out.splitlines()]) == (0, [check.name for check in CHECKS])

    code, out, _ = await doctor(None, "--list", "--json", "--only", "machine")
    assert [each["name"] for each in json.loads(out)["checks"]] == ["sandbox", "temp_dir", "memory", "open_files"]


async def test_a_check_that_there_is_not_is_wrong_usage() -> None:
    code, out, err = await doctor(None, "--only", "weather")

    assert (code, out) == (2, "")
    assert "There is no layer or check weather." in err


async def test_ctrl_c_ends_it_with_130(installation: Installation) -> None:
    silent = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    writers: list[asyncio.StreamWriter] = []
    url = installation.at(port=silent.sockets[0].getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "worker", "doctor", cwd=deno.REPOSITORY,
        env=os.environ | installation.environment | {"DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(30):
        while not writers:  # noqa: ASYNC110 - it is asking the silent port now, for two seconds
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = await process.communicate()
    silent.close()
    for writer in writers:
        writer.transport.abort()

    assert (process.returncode, out, err) == (130, b"", b"Interrupted.\n")


@pytest.mark.parametrize(
    ("allowed", "code", "exit_code"), [("false", "sandbox_none", 1), ("true", "sandbox_switched_off", 0)]
)
async def test_a_kernel_that_refuses_every_sandbox_is_noticed(allowed: str, code: str, exit_code: int) -> None:
    # As a container's profile does that allows neither namespaces nor filters.
    ended, out, _ = await doctor(
        None, "--only", "sandbox", "--json", before=_refuse_sandboxes, SLUICE_ALLOW_UNSANDBOXED=allowed
    )

    (found,) = json.loads(out)["checks"]
    assert (found["code"], ended) == (code, exit_code)


async def test_a_low_limit_of_open_files_is_noticed() -> None:
    code, out, _ = await doctor(
        None, "--only", "machine", "--json", before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    )

    assert code == 1
    assert [each["code"] for each in json.loads(out)["checks"] if each["status"] == "failed"] == ["open_files_few"]


def _refuse_sandboxes() -> None:
    """Let this process and its children have neither a namespace nor a filter of their own."""
    unshare, prctl, seccomp = _NUMBERS[os.uname().machine]
    load, equal, give = confine._LOAD, confine._JUMP_EQUAL, confine._RETURN
    make = confine._Instruction
    program = [
        make(load, 0, 0, confine._NUMBER_AT),
        make(equal, 4, 0, unshare), make(equal, 3, 0, seccomp), make(equal, 0, 3, prctl),
        make(load, 0, 0, confine._FIRST_ARGUMENT_AT),
        make(equal, 0, 1, confine._PR_SET_SECCOMP),
        make(give, 0, 0, confine._ERRNO | errno.EPERM),
        make(give, 0, 0, confine._ALLOW),
    ]  # fmt: skip
    array = (make * len(program))(*program)
    libc = confine._libc()
    libc.prctl(confine._PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    assert libc.prctl(confine._PR_SET_SECCOMP, 2, ctypes.byref(confine._Program(len(array), array)), 0, 0) == 0
