"""The demo as a person starts it: a process of its own in its own session, like a terminal's foreground job."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from local import deno

_SECONDS = 110


def _start(temporary: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(deno.REPOSITORY), "TMPDIR": str(temporary)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "local.demo", *arguments], cwd=temporary, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def run(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, with `temporary` for temporary files."""
    process = _start(temporary, arguments)
    try:
        out, err = process.communicate(timeout=_SECONDS)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the object that --json prints as the last line."""
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def foreground(temporary: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run it until the block ends; it is killed if it still runs then."""
    process = _start(temporary, arguments)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def press_ctrl_c(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Do what a terminal does, to the whole foreground group, and return what was still printed."""
    os.killpg(process.pid, signal.SIGINT)
    return process.communicate(timeout=_SECONDS)


def left_running(temporary: Path) -> list[str]:
    """Return the processes that know `temporary`: by their arguments, their environment or their directory."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if process.pid != os.getpid() and any(str(temporary) in word for word in words):
            found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
    return found
