"""The child that reads a document: what it cannot reach, and how it ends when it misbehaves."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reading import MB, local_parser
from worker.errors import Misconfigured, Transient
from worker.model import Source
from worker.pipeline.parse import local, sandbox
from worker.pipeline.parse.local import LocalParser

TIGHT = sandbox.Limits(memory_bytes=512 * MB, cpu_seconds=5, seconds=10, output_bytes=MB)


def test_the_child_has_no_network_no_files_no_processes_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://secret@nowhere")
    sandbox.probe.cache_clear()
    found = sandbox.probe()
    sandbox.probe.cache_clear()
    assert found["mode"] in ("namespace", "seccomp")
    assert not found["connects"]
    assert not found["opens_files"]
    assert not found["reads_parent"]
    assert not found["starts_processes"]
    assert set(found["environment"]) <= {"LC_CTYPE", "LD_LIBRARY_PATH"}
    assert sandbox.sandbox_mode() == found["mode"]


async def _run_python(code: str, tmp_path: Path, limits: sandbox.Limits = TIGHT) -> sandbox.Outcome:
    root = str(Path(local.__file__).parents[3])
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.append({root!r})\n{code}"]
    with Path(os.devnull).open() as nothing:
        return await sandbox.run(command, nothing.fileno(), tmp_path, limits)


async def test_the_filter_alone_refuses_the_network_where_there_are_no_namespaces(tmp_path: Path) -> None:
    code = """
from worker.pipeline.parse import confine, probe
import json
assert confine.close_doors()
print(json.dumps(probe.probe("seccomp")), flush=True)
"""
    outcome = await _run_python(code, tmp_path)
    assert outcome.returncode == 0, outcome.errors
    assert b'"connects": false' in outcome.output
    assert b'"opens_files": false' in outcome.output
    assert b'"reads_parent": false' in outcome.output


async def test_the_namespace_alone_refuses_the_network_where_there_is_no_filter(tmp_path: Path) -> None:
    if sandbox.probe()["mode"] != "namespace":
        pytest.fail("this machine has no user namespaces: run the tests where it has, as the release does")
    code = """
from worker.pipeline.parse import confine, probe
import json
assert confine.leave_network()
print(json.dumps(probe.probe("namespace")), flush=True)
"""
    outcome = await _run_python(code, tmp_path)
    assert b'"connects": false' in outcome.output


async def test_without_a_sandbox_nothing_is_read_unless_the_operator_says_so(tmp_path: Path) -> None:
    """A child in which neither way works: both are taken from it before it starts."""
    command = sandbox.command(
        "worker.pipeline.parse.formats.text", TIGHT, mime_type="text/plain", max_pages=1, max_text_bytes=MB
    )
    path = tmp_path / "a.txt"
    path.write_text("hello")
    for allowed, answer in (("false", b'{"mode": "none"}'), ("true", b'"pages": ["hello"]')):
        code = f"""
import runpy
from worker.pipeline.parse import confine
confine.leave_network = lambda: False
confine.close_doors = lambda: False
sys.argv = ["child", {command[-1].replace('"allow_unsandboxed": false', f'"allow_unsandboxed": {allowed}')!r}]
runpy.run_path({command[-2]!r}, run_name="__main__")
"""
        root = str(Path(local.__file__).parents[3])
        with path.open("rb") as file:
            outcome = await sandbox.run(
                [sys.executable, "-I", "-c", f"import sys; sys.path.append({root!r})\n{code}"],
                file.fileno(), tmp_path, TIGHT,
            )  # fmt: skip
        assert answer in outcome.output, outcome.errors
    with pytest.raises(Misconfigured) as refused:
        local._read_answer(sandbox.Outcome(0, b'{"mode": "none"}', "", "itself"), "text/plain")
    assert refused.value.code == "sandbox_unavailable"


# What happens to a child that misbehaves.


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import ctypes; ctypes.string_at(0)", "parser_crashed"),
        ("import os; os.abort()", "parse_out_of_memory"),
        ("import os; os.kill(os.getpid(), 9)", "parser_crashed"),
        ("while True: pass", "parse_timeout"),
        ("import time; time.sleep(100)", "parse_timeout"),
        ("import sys\nwhile True: sys.stdout.write('x' * 65536)", "text_too_large"),
        ("import sys\nwhile True: sys.stderr.write('x' * 65536)", "parse_timeout"),
    ],
    ids=["segfault", "abort", "killed", "spins", "sleeps", "endless output", "endless complaints"],
)
async def test_a_child_that_misbehaves_ends_with_a_code_and_leaves_nothing(
    code: str, expected: str, tmp_path: Path, parser: LocalParser
) -> None:
    limits = sandbox.Limits(memory_bytes=512 * MB, cpu_seconds=5, seconds=1, output_bytes=MB)
    before = _children()  # a stack that other tests share may run beside
    outcome = await _run_python(code, tmp_path, limits)
    assert parser._explain(outcome).code == expected
    assert len(outcome.errors) <= 4096
    assert _children() == before


async def test_more_cpu_time_than_allowed_is_a_timeout(tmp_path: Path, parser: LocalParser) -> None:
    code = """
from worker.pipeline.parse import confine
confine.set_limits(memory_bytes=512 * 1024 * 1024, cpu_seconds=1)
while True: pass
"""
    outcome = await _run_python(code, tmp_path)
    assert (outcome.ended_by, parser._explain(outcome).code) == ("itself", "parse_timeout")


async def test_cancelling_a_poll_kills_the_child_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "pid"
    code = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(sandbox, "command", lambda *_a, **_k: [sys.executable, "-I", "-c", code])
    (tmp_path / "a.csv").write_text("hello")
    parser = local_parser()
    poll = asyncio.create_task(
        parser.poll(await parser.submit(Source(tmp_path / "a.csv", "a.csv", 5, b"", "text/csv")))
    )
    child = await _started(marker)
    begun = time.monotonic()
    poll.cancel()
    with pytest.raises(asyncio.CancelledError):
        await poll
    assert time.monotonic() - begun < 1
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    await parser.aclose()


async def test_a_child_does_not_outlive_a_worker_that_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    root = str(Path(local.__file__).parents[3])
    child = (
        f"import os, sys, time; sys.path.append({root!r})\nfrom worker.pipeline.parse import confine\n"
        f"confine.leave_network(); confine.end_with_parent(int(sys.argv[1]))\n"
        f"open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    worker = f"import os, subprocess, sys; subprocess.run([sys.executable, '-I', '-c', {child!r}, str(os.getpid())])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-I", "-c", worker)
    pid = await _started(marker)
    process.kill()
    await process.wait()
    await _until(lambda: not _alive(pid))


async def _started(marker: Path) -> int:
    await _until(lambda: marker.exists() and marker.read_text() != "")
    return int(marker.read_text())


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  another process does it
            await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return _state(pid) != "Z"
    except FileNotFoundError:
        return False


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def _children() -> list[int]:
    """Return this process's children."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in children.split()]


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"pages": 3, "title": null, "notes": []}',
        b'{"pages": ["a\\u0000b"], "title": null, "notes": []}',
        b'{"pages": ["\\ud800"], "title": null, "notes": []}',
        b'{"pages": ["ok"], "title": 7, "notes": []}',
        b'{"pages": ["ok"], "title": null, "notes": [{}]}',
        b'{"pages": ["\xff"], "title": null, "notes": []}',
        b'{"rejected": ["a"]}', b'{"failed": 7}',
    ],
)  # fmt: skip
def test_the_answer_of_a_child_that_was_taken_over_is_not_believed(answer: bytes) -> None:
    with pytest.raises(Transient) as caught:
        local._read_answer(sandbox.Outcome(0, answer, "", "itself"), "text/plain")
    assert caught.value.code == "parser_crashed"


# Bombs.
