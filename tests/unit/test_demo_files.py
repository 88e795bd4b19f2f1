from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from local.demo.files import uploads

Named = Callable[..., list[str]]


@pytest.fixture
def named(tmp_path: Path) -> Named:
    """The names under which files of these paths are stored."""
    return lambda *paths: [upload.name for upload in uploads([Path(path) for path in paths], tmp_path / "links")]


def test_the_same_name_twice_gives_two_objects(named: Named) -> None:
    assert named("a/report.pdf", "b/report.pdf", "c/Report.PDF") == ["report.pdf", "report-2.pdf", "Report-3.PDF"]


def test_a_given_number_is_not_given_again(named: Named) -> None:
    assert named("report.pdf", "x/report-2.pdf", "y/report.pdf") == ["report.pdf", "report-2.pdf", "report-3.pdf"]


def test_letters_that_storage_refuses_are_replaced(named: Named) -> None:
    assert named("Größe [neu] #1.pdf", "naïve café.md", "報告.pdf") == [
        "Groe _neu_ _1.pdf",
        "naive cafe.md",
        "file.pdf",
    ]


def test_a_link_leads_to_each_file_whatever_its_name(tmp_path: Path) -> None:
    file = tmp_path / "one, two.md"
    file.write_text("three")

    (upload,) = uploads([file], tmp_path / "links")

    assert upload.path.read_text() == "three"
    assert "," not in upload.path.name


def test_a_file_is_declared_as_what_its_name_says(tmp_path: Path) -> None:
    paths = [Path("a.md"), Path("b.PDF"), Path("c.unknown")]

    types = [upload.content_type for upload in uploads(paths, tmp_path / "links")]

    assert types == ["text/markdown", "application/pdf", "application/octet-stream"]
