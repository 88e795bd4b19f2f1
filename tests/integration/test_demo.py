"""The demo from outside: what it prints, what it exits with, and that nothing of it stays behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from local import samples
from tests.integration.demo_process import foreground, left_running, press_ctrl_c, report, run


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path of its own, by which the run's processes and files are known."""
    with tempfile.TemporaryDirectory(prefix="demo-test-") as name:
        yield Path(name).resolve()


def test_the_samples_become_searchable_for_their_owner_and_for_nobody_else(temporary: Path) -> None:
    done = run(temporary, "--json")

    found = report(done)
    assert done.returncode == 0, done.stderr
    assert found["documents"] == found["ready"] == 6
    assert found["chunks"] == found["embeddings"] > 10
    assert found["failures"] == []
    assert found["seconds"] > 0
    assert found["messages"] >= found["ready"]
    assert found["isolation"]["owner_hits"] > 0
    assert found["isolation"]["owner_rows"] > found["chunks"]
    assert found["isolation"]["stranger_hits"] == found["isolation"]["stranger_rows"] == 0
    assert found["isolation"]["stranger_may_write"] is False
    best = [_where(question["hits"][0]) for question in found["questions"]]
    assert best == [(question.document, question.page) for question in samples.QUESTIONS]
    assert "harbour-handbook.pdf: ready, 5 pages" in done.stderr
    assert left_running(temporary) == []
    assert list(temporary.iterdir()) == []


def _where(hit: dict[str, Any]) -> tuple[str, int]:
    return hit["document"], hit["page"]


def test_a_file_that_cannot_be_read_is_told_with_its_code_and_the_others_are_ready(temporary: Path) -> None:
    files = temporary / "files"
    for folder, text in (("a", "# Otters\n\nOtters hold hands."), ("b", "# Moles\n\nMoles dig at night.")):
        (files / folder).mkdir(parents=True)
        (files / folder / "notes, old.md").write_text(text)
    (files / "empty.pdf").write_bytes(b"")
    paths = [str(path) for path in sorted(files.rglob("*.*"))]

    done = run(temporary, "--json", "--ask", "What do otters hold?", *paths)

    found = report(done)
    assert done.returncode == 1
    assert (found["documents"], found["ready"]) == (3, 2)
    assert [failure["document"] for failure in found["failures"]] == ["empty.pdf"]
    assert found["failures"][0]["code"] == "file_empty"
    assert found["failures"][0]["message"] in done.stderr
    (question,) = found["questions"]
    assert question["hits"][0]["document"] == "notes, old.md"
    assert "hold hands" in question["hits"][0]["snippet"]
    assert {hit["document"] for hit in question["hits"]} == {"notes, old.md", "notes, old-2.md"}
    assert found["isolation"]["stranger_rows"] == 0


def test_a_missing_file_is_wrong_usage(temporary: Path) -> None:
    done = run(temporary, "no-such-file.pdf")

    assert done.returncode == 2
    assert "no-such-file.pdf" in done.stderr
    assert "Traceback" not in done.stderr


def _cluster_is_made(temporary: Path) -> bool:
    return any(temporary.glob("*/stack/postgres/data/PG_VERSION"))


def _postgres_runs(temporary: Path) -> bool:
    return any(temporary.glob("*/stack/postgres/data/postmaster.pid"))


def _worker_runs(temporary: Path) -> bool:
    return any(temporary.glob("*/worker.log"))


@pytest.mark.parametrize("phase", [_cluster_is_made, _postgres_runs, _worker_runs])
def test_ctrl_c_while_starting_leaves_nothing(temporary: Path, phase: Callable[[Path], bool]) -> None:
    with foreground(temporary) as process:
        deadline = time.monotonic() + 60
        while not phase(temporary):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

        _, said = press_ctrl_c(process)

    assert (process.returncode, said.strip()) == (130, "Stopped; nothing is left running.")
    assert left_running(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("line", [": embed", "Stack and worker stay up"])
def test_ctrl_c_while_working_leaves_nothing(temporary: Path, line: str) -> None:
    with foreground(temporary, "--keep") as process:
        assert process.stdout is not None
        _read_until(process.stdout, line)

        _, said = press_ctrl_c(process)

    assert (process.returncode, said.strip()) == (130, "Stopped; nothing is left running.")
    assert left_running(temporary) == []
    assert list(temporary.iterdir()) == []


def _read_until(stream: IO[str], wanted: str) -> None:
    read = []
    for line in stream:
        read.append(line)
        if wanted in line:
            return
    pytest.fail(f"{wanted!r} was not printed, but:\n{''.join(read)}")
