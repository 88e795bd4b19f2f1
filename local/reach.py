"""Lets one OS user reach a directory whose parents are closed to it.

Postgres refuses to run as root, and what root clones into /root or a fresh temporary directory cannot be
reached by anybody else. Opening those parents to everyone would be too much: an access control entry lets
this one user pass through them, and neither read nor list them.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from local.errors import StackError

_ACL = "system.posix_acl_access"
_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")  # tag, permissions, id
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY = 0xFFFFFFFF
_PASS = 0o1


def let_pass(path: Path, uid: int) -> None:
    """Let `uid` pass through every parent of `path`; a parent that everyone may pass is left as it is.

    Linux only, as the owner or root. Raises StackError where the file system keeps no access lists.
    """
    for parent in path.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IXOTH:
            continue
        try:
            os.setxattr(parent, _ACL, _with_entry(_entries(parent, mode), uid))
        except OSError as exc:
            raise StackError(
                f"Postgres runs as another user than root, and that user cannot pass through {parent}. "
                f"Run this as a normal user, choose another directory, or allow it with: chmod o+x {parent}"
            ) from exc


def _entries(path: Path, mode: int) -> list[tuple[int, int, int]]:
    try:
        raw = os.getxattr(path, _ACL)[len(_VERSION) :]
    except OSError:  # none yet: the mode bits are the list
        return [(_OWNER, mode >> 6 & 7, _NOBODY), (_GROUP, mode >> 3 & 7, _NOBODY), (_OTHER, mode & 7, _NOBODY)]
    return list(_ENTRY.iter_unpack(raw))


def _with_entry(entries: list[tuple[int, int, int]], uid: int) -> bytes:
    ours = [e for e in entries if e[0] == _USER and e[2] == uid]
    others = [e for e in entries if e[0] != _MASK and e not in ours]
    mask = next((e[1] for e in entries if e[0] == _MASK), next(e[1] for e in entries if e[0] == _GROUP))
    granted = (ours[0][1] if ours else 0) | _PASS
    # The kernel wants the entries in the order of their tags, users by id.
    every = sorted([*others, (_USER, granted, uid), (_MASK, mask | _PASS, _NOBODY)], key=lambda e: (e[0], e[2]))
    return _VERSION + b"".join(_ENTRY.pack(*e) for e in every)
