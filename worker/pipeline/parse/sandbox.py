"""A process for each document, which may crash, loop or swell without harm to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

Mode = Literal["namespace", "seccomp", "none"]

_CHILD = Path(__file__).with_name("child.py")
_MAX_ERRORS = 4096
_BLOCK = 65536
# What Python itself may need to start; the worker's own environment holds its keys.
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may cost: bytes of address space, seconds of CPU and of wall clock, bytes of result."""

    memory_bytes: int
    cpu_seconds: int
    seconds: float
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a child ended. `returncode` is negative for a signal; `errors` is the end of what it complained."""

    returncode: int
    output: bytes
    errors: str
    ended_by: Literal["itself", "deadline", "output"]


def command(module: str, limits: Limits, *, allow_unsandboxed: bool = False, **task: object) -> list[str]:
    """Return the command line of a child that reads with `module` once it is confined."""
    argument = {
        "module": module,
        "path": _library_path(),
        "parent": os.getpid(),
        "memory_bytes": limits.memory_bytes,
        "cpu_seconds": limits.cpu_seconds,
        "allow_unsandboxed": allow_unsandboxed,
        "mime_type": None,
        **task,
    }
    # -I: no user site, no PYTHON* variables, no current directory. -S: no code from .pth files, and 6 ms.
    return [sys.executable, "-I", "-S", "-X", "utf8", str(_CHILD), json.dumps(argument)]


async def run(arguments: Sequence[str], file: int, directory: Path, limits: Limits) -> Outcome:
    """Run a child with the open `file` as its standard input and return how it ended.

    It is killed with its whole process group at the deadline, when it writes more than
    `limits.output_bytes`, and when the caller is cancelled; nothing of it is left when this returns.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=file,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=directory,
        env=_environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_tail(process.stderr))
    ended_by: Literal["itself", "deadline", "output"] = "itself"
    output = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            while block := await process.stdout.read(_BLOCK):
                output += block
                if len(output) > limits.output_bytes:
                    ended_by = "output"
                    output.clear()
                    break
            else:
                await process.wait()
    except TimeoutError:
        ended_by = "deadline"
    finally:
        # Reading on to the end of both pipes is what lets asyncio close them.
        _kill(process)
        await asyncio.shield(_bury(process, errors))
    return Outcome(process.returncode or 0, bytes(output), errors.result(), ended_by)


@functools.cache
def probe(directory: Path | None = None) -> dict[str, Any]:
    """Start a child in a folder made in `directory`, let it try what it should not be able to do; return what it found.

    Blocks for some 50 ms the first time. `mode` says what keeps it from the network: `namespace`,
    `seccomp` (both also refuse files and processes where seccomp is there), or `none`.
    """
    limits = Limits(memory_bytes=512 * 1024 * 1024, cpu_seconds=10, seconds=10, output_bytes=65536)
    with tempfile.TemporaryDirectory(prefix="sluice-probe-", dir=directory) as folder:
        done = subprocess.run(
            command("worker.pipeline.parse.probe", limits, allow_unsandboxed=True),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=folder,
            env=_environment(),
            timeout=limits.seconds,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"the sandbox's child does not start: {done.stderr.decode(errors='replace')[-2000:]}")
    return cast(dict[str, Any], json.loads(done.stdout))


def sandbox_mode(directory: Path | None = None) -> Mode:
    """Name what keeps documents' processes from the network on this machine; see `probe`."""
    found = probe(directory)
    return cast(Mode, "none" if found.get("connects", True) else found["mode"])


async def _tail(stream: asyncio.StreamReader) -> str:
    kept = b""
    while block := await stream.read(_BLOCK):
        kept = (kept + block)[-_MAX_ERRORS:]
    return kept.decode(errors="replace")


async def _bury(process: asyncio.subprocess.Process, errors: asyncio.Task[str]) -> None:
    assert process.stdout is not None
    while await process.stdout.read(_BLOCK):
        pass
    await errors
    await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    # Only while it is not reaped: its number could be another's afterwards.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT if name in os.environ}


@functools.cache
def _library_path() -> tuple[str, ...]:
    """Return the directories that hold this package and the parsers' libraries, and no other."""
    root = str(Path(__file__).resolve().parents[3])
    found = [p for p in sys.path if any((Path(p) / name).is_dir() for name in ("lxml", "pypdfium2_raw"))]
    return tuple(dict.fromkeys([*(str(Path(p).resolve()) for p in found), root]))
