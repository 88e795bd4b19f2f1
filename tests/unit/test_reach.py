"""Access control entries that let one user pass through a directory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from local import reach

USER, OTHER_USER = 4321, 1234
ENTRY = struct.Struct("<HHI")


def _list(path: Path) -> set[tuple[int, int, int]]:
    return set(ENTRY.iter_unpack(os.getxattr(path, "system.posix_acl_access")[4:]))


def _closed(tmp_path: Path) -> Path:
    closed = tmp_path / "closed"
    (closed / "data").mkdir(parents=True)
    closed.chmod(0o700)
    return closed


def test_one_user_may_pass_and_neither_read_nor_list(tmp_path: Path) -> None:
    closed = _closed(tmp_path)

    reach.let_pass(closed / "data", USER)

    assert (reach._USER, 0o1, USER) in _list(closed)
    assert (reach._OTHER, 0o0, reach._NOBODY) in _list(closed)
    assert closed.stat().st_mode & 0o007 == 0


def test_passing_again_and_for_another_user_keeps_what_was_there(tmp_path: Path) -> None:
    closed = _closed(tmp_path)
    reach.let_pass(closed / "data", USER)
    once = _list(closed)

    reach.let_pass(closed / "data", USER)
    assert _list(closed) == once

    reach.let_pass(closed / "data", OTHER_USER)
    assert _list(closed) == once | {(reach._USER, 0o1, OTHER_USER)}


def test_a_directory_that_everyone_may_pass_is_left_alone(tmp_path: Path) -> None:
    closed = _closed(tmp_path)
    closed.chmod(0o711)

    reach.let_pass(closed / "data", USER)

    assert "system.posix_acl_access" not in os.listxattr(closed)
