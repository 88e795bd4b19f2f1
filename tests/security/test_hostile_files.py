"""Files that are made to harm: each gets its verdict, the worker stays as it was."""

from __future__ import annotations

import asyncio
import io
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from reportlab.lib.pdfencrypt import StandardEncryption
from reportlab.pdfgen.canvas import Canvas

from tests import hostile
from tests.reading import MB, Reader, local_parser
from worker.errors import IngestError, Misconfigured, Rejected, Transient
from worker.model import Source
from worker.pipeline.parse import local, sandbox
from worker.pipeline.parse.local import LocalParser

TIGHT = sandbox.Limits(memory_bytes=512 * MB, cpu_seconds=5, seconds=10, output_bytes=MB)


@pytest.fixture
def read(tmp_path: Path) -> Reader:
    """Read bytes as the worker does."""
    return Reader(tmp_path)


@pytest.fixture
async def parser() -> AsyncIterator[LocalParser]:
    """A parser whose children may use 512 MB."""
    made = local_parser(memory_bytes=512 * MB)
    yield made
    await made.aclose()


async def verdict(read: Reader, data: bytes, name: str, parser: LocalParser | None = None) -> IngestError:
    with pytest.raises(IngestError) as caught:
        await read(data, name, parser)
    return caught.value


def text_pdf(pages: int = 3, encrypt: StandardEncryption | None = None) -> bytes:
    out = io.BytesIO()
    canvas = Canvas(out, encrypt=encrypt)
    for page in range(1, pages + 1):
        for line in range(30):
            canvas.drawString(72, 720 - 20 * line, f"Letter {page * page}, line {line} says something plain.")
        canvas.showPage()
    canvas.save()
    return out.getvalue()


def resident() -> int:
    """Return this process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# What the child cannot do.


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
    (tmp_path / "a.txt").write_text("hello")
    parser = local_parser()
    poll = asyncio.create_task(
        parser.poll(await parser.submit(Source(tmp_path / "a.txt", "a.txt", 5, b"", "text/plain")))
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


async def test_a_pdf_flate_bomb_is_refused_and_the_worker_stays_as_it_was(read: Reader) -> None:
    data = hostile.flate_bomb_pdf()
    assert len(data) < 20_000
    before = resident()
    assert (await verdict(read, data, "bomb.pdf")).code == "parse_out_of_memory"
    assert resident() - before < 20 * MB


async def test_a_docx_zip_bomb_is_refused_before_it_is_unpacked(read: Reader, parser: LocalParser) -> None:
    data = hostile.zip_bomb_docx()
    assert len(data) < 6 * MB
    before, begun = resident(), time.monotonic()
    refused = await verdict(read, data, "bomb.docx", parser)
    assert isinstance(refused, Rejected)
    assert refused.code == "archive_too_large"
    assert resident() - before < 20 * MB
    assert time.monotonic() - begun < 10


async def test_a_zip_bomb_that_lies_about_its_size_is_not_unpacked_either(read: Reader, parser: LocalParser) -> None:
    assert (await verdict(read, hostile.lying_zip_bomb_docx(), "bomb.docx", parser)).code == "file_corrupt"


async def test_a_part_of_moderate_ratio_is_bounded_too(read: Reader, parser: LocalParser) -> None:
    words = random.Random(1).randbytes(4096).hex()
    data = hostile.docx(f"<x>{words * (200 * MB // len(words))}</x>")
    assert (await verdict(read, data, "large.docx", parser)).code == "archive_too_large"


async def test_a_pdf_of_20000_pages_is_refused_by_its_page_count(read: Reader) -> None:
    data = hostile.many_pages_pdf(20_000)
    begun = time.monotonic()
    refused = await verdict(read, data, "long.pdf")
    assert refused.code == "too_many_pages"
    assert "2000" in refused.public_message
    assert time.monotonic() - begun < 10


async def test_billion_laughs_are_refused(read: Reader, parser: LocalParser) -> None:
    assert (await verdict(read, hostile.billion_laughs_docx(), "laughs.docx", parser)).code == "file_corrupt"


async def test_no_file_of_this_machine_is_included_by_an_entity(read: Reader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    assert (
        await verdict(read, hostile.external_entity_docx(str(tmp_path / "secret")), "x.docx")
    ).code == "file_corrupt"


async def test_deeply_nested_xml_is_refused(read: Reader, parser: LocalParser) -> None:
    assert (await verdict(read, hostile.deep_docx(), "deep.docx", parser)).code == "file_corrupt"


async def test_deeply_nested_html_keeps_what_can_be_read(read: Reader, parser: LocalParser) -> None:
    assert (await read(hostile.deep_html(1000), "deep.html", parser)).text == "deep\n\nbehind"
    assert (await verdict(read, hostile.deep_html(), "deep.html", parser)).code == "file_corrupt"


async def test_a_sheet_that_claims_every_cell_costs_only_those_it_has(read: Reader, parser: LocalParser) -> None:
    parsed = await read(hostile.sparse_xlsx(), "sparse.xlsx", parser)
    assert "1048576" in parsed.text
    assert len(parsed.text) < 200


async def test_a_sheet_that_would_be_millions_of_empty_cells_is_refused(read: Reader) -> None:
    parser = local_parser(max_text_bytes=4 * MB)
    assert (await verdict(read, hostile.diagonal_xlsx(), "diagonal.xlsx", parser)).code == "text_too_large"
    await parser.aclose()


async def test_a_csv_line_of_10_mb_is_text(read: Reader, parser: LocalParser) -> None:
    parsed = await read(b"a,b," + b"x,y," * (10 * MB // 4), "line.csv", parser)
    assert parsed.mime_type == "text/csv"
    assert len(parsed.text) == 4 + 10 * MB


async def test_more_text_than_allowed_is_refused(read: Reader) -> None:
    parser = local_parser(max_text_bytes=MB)
    assert (await verdict(read, b"word " * MB, "long.txt", parser)).code == "text_too_large"
    await parser.aclose()


@pytest.mark.parametrize("make", [hostile.endless_page_tree_pdf, hostile.endless_form_pdf])
async def test_a_pdf_that_holds_itself_ends(read: Reader, parser: LocalParser, make: object) -> None:
    assert callable(make)
    assert (await verdict(read, make(), "loop.pdf", parser)).code in ("file_corrupt", "needs_ocr")


# Files that cannot be read.


async def test_a_pdf_with_a_user_password_is_refused(read: Reader) -> None:
    data = text_pdf(encrypt=StandardEncryption("secret", "owner", strength=128))
    assert (await verdict(read, data, "locked.pdf")).code == "pdf_encrypted"


async def test_a_pdf_with_an_owner_password_only_is_read(read: Reader) -> None:
    parsed = await read(text_pdf(encrypt=StandardEncryption("", "owner", canPrint=0, strength=128)), "owner.pdf")
    assert "Letter 9, line 29 says something plain." in parsed.text


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.97])
async def test_a_truncated_pdf_is_corrupt(read: Reader, kept: float) -> None:
    data = text_pdf()
    assert (await verdict(read, data[: int(len(data) * kept)], "cut.pdf")).code == "file_corrupt"


@pytest.mark.parametrize("kept", [0.3, 0.8])
async def test_a_truncated_office_file_is_corrupt(read: Reader, kept: float) -> None:
    data = hostile.docx(hostile.document("<w:p><w:r><w:t>" + "word " * 5000 + "</w:t></w:r></w:p>"))
    assert (await verdict(read, data[: int(len(data) * kept)], "cut.docx")).code == "file_corrupt"


async def test_a_scan_without_text_needs_ocr(read: Reader) -> None:
    out = io.BytesIO()
    canvas = Canvas(out)
    for _ in range(2):
        canvas.rect(100, 100, 300, 300, fill=1)
        canvas.showPage()
    canvas.save()
    assert (await verdict(read, out.getvalue(), "scan.pdf")).code == "needs_ocr"


async def test_mutated_files_always_end_with_a_verdict_and_never_harm(read: Reader, parser: LocalParser) -> None:
    seed = random.SystemRandom().randrange(10**9)
    chance = random.Random(seed)
    whole = {
        "a.pdf": text_pdf(),
        "a.docx": hostile.docx(hostile.document("<w:p><w:r><w:t>hello</w:t></w:r></w:p>" * 50)),
        "a.xlsx": hostile.xlsx(hostile.worksheet('<row r="1"><c r="A1"><v>1</v></c></row>')),
        "a.html": b"<html><body><table><tr><td>a<td>b</table><ul><li>x</ul></body></html>",
    }
    for name, data in whole.items():
        for _ in range(6):
            broken = bytearray(data)
            for _ in range(chance.randrange(1, 30)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            try:
                await read(bytes(broken), name, parser)
            except Rejected:
                pass
            except IngestError as exc:
                pytest.fail(f"seed {seed}, {name}: {exc}")
