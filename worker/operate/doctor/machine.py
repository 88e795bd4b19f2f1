"""This machine: what keeps untrusted files in, and whether there is room to work."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
import tempfile
from pathlib import Path

from worker.operate.doctor.check import Check, Problem
from worker.operate.doctor.examination import Examination

_FILES = 128
_FILES_PER_SLOT = 16

UNCONFINED = Problem(
    "sandbox_none",
    "Nothing here keeps the parser's processes from the network (neither namespaces nor seccomp), so the worker "
    "refuses files.",
    "Let the container's seccomp profile allow unshare or prctl(PR_SET_SECCOMP); or accept the risk with "
    "SLUICE_ALLOW_UNSANDBOXED=true.",
)
UNCONFINED_ALLOWED = Problem(
    "sandbox_switched_off",
    "Untrusted files are parsed without a sandbox, because SLUICE_ALLOW_UNSANDBOXED is set.",
    "Let the container's seccomp profile allow unshare or prctl(PR_SET_SECCOMP), and take the setting away.",
    warning=True,
)
TEMP_UNWRITABLE = Problem(
    "temp_dir_unwritable",
    "The directory for files under work, {directory}, cannot be written ({why}).",
    "Set SLUICE_TEMP_DIR to a directory that the worker's user may write.",
)
TEMP_FULL = Problem(
    "temp_dir_full",
    "The directory for files under work, {directory}, has {free} MB left, and {slots} slots may need {wanted} MB.",
    "Make room, set SLUICE_TEMP_DIR to a larger disk, or lower SLUICE_SLOTS or SLUICE_MAX_FILE_BYTES.",
)
MEMORY_SMALL = Problem(
    "memory_small",
    "{slots} parsers may take {wanted} MB together, and this machine or container has {there} MB.",
    "Lower SLUICE_SLOTS or SLUICE_PARSE_MEMORY_BYTES, or give it more memory.",
    warning=True,
)
FILES_FEW = Problem(
    "open_files_few",
    "This process may open {limit} files, and a worker with {slots} slots wants {wanted}.",
    "Raise the limit (ulimit -n, LimitNOFILE, or the container's ulimits).",
)


async def sandbox(examination: Examination) -> str:
    """Try from inside a parser's process what it should not be able to do."""
    from worker.pipeline.parse.sandbox import sandbox_mode

    mode = await asyncio.to_thread(sandbox_mode)
    if mode == "none":
        raise (UNCONFINED_ALLOWED if examination.settings.allow_unsandboxed else UNCONFINED).found()
    return f"Parsers are kept in by: {mode}."


async def temp_dir(examination: Examination) -> str:
    """Write a file where the worker will, take it away again, and look at the room."""
    settings = examination.settings
    directory = settings.temp_dir or Path(tempfile.gettempdir())
    there = directory
    while not there.exists() and there != there.parent:  # the worker makes it; here it is only looked at
        there = there.parent
    try:
        with tempfile.TemporaryFile(prefix="sluice-doctor-", dir=there) as file:
            file.write(b"\0")
        free = shutil.disk_usage(there).free
    except OSError as exc:
        raise TEMP_UNWRITABLE.found(directory=directory, why=exc.strerror or type(exc).__name__) from exc
    wanted = settings.slots * settings.max_file_bytes
    if free < wanted:
        raise TEMP_FULL.found(directory=directory, free=free >> 20, slots=settings.slots, wanted=wanted >> 20)
    return f"{directory} has {free >> 20} MB."


async def memory(examination: Examination) -> str:
    """Compare what all parsers together may take with what is there."""
    settings = examination.settings
    wanted, there = settings.slots * settings.parse_memory_bytes, _memory_bytes()
    if there and wanted > there:
        raise MEMORY_SMALL.found(slots=settings.slots, wanted=wanted >> 20, there=there >> 20)
    return f"{there >> 20} MB, parsers may take {wanted >> 20} MB."


async def open_files(examination: Examination) -> str:
    """Compare the limit of open files with what a worker wants."""
    slots = examination.settings.slots
    limit, wanted = resource.getrlimit(resource.RLIMIT_NOFILE)[0], _FILES + _FILES_PER_SLOT * slots
    if limit != resource.RLIM_INFINITY and limit < wanted:
        raise FILES_FEW.found(limit=limit, slots=slots, wanted=wanted)
    return f"{'No limit' if limit == resource.RLIM_INFINITY else limit} of open files, a worker wants {wanted}."


def _memory_bytes() -> int:
    """Return the memory of the machine or of the container, whichever is less; 0 where neither is told."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
        found.append(int(total.split()[1]) * 1024)
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(Path(name).read_text()))
    return min(found, default=0)


CHECKS = (
    Check(
        "sandbox", "machine", "Untrusted files are parsed where they can do no harm", sandbox,
        (UNCONFINED, UNCONFINED_ALLOWED), seconds=15,
    ),
    Check("temp_dir", "machine", "Files under work have a place", temp_dir, (TEMP_UNWRITABLE, TEMP_FULL)),
    Check("memory", "machine", "The parsers' memory is there", memory, (MEMORY_SMALL,)),
    Check("open_files", "machine", "Enough files may be open", open_files, (FILES_FEW,)),
)  # fmt: skip
