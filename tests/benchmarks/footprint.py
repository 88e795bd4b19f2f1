"""`scripts/bench footprint`: what the worker is before it has done anything: its start, its size, its memory.

The base install is made anew from the lock in an environment of its own, so it needs a package index. Memory is a
worker's at concurrency 16 through W1, Markdown and the OpenAI adapter.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median
from typing import Any

import click

from local import deno, interrupt
from tests.benchmarks.documents import DOCUMENTS
from tests.benchmarks.w1 import show
from tests.benchmarks.world import say, world

_STARTS = 7


def _seconds(*command: str) -> float:
    """Return the middle of a few starts of a program; the first one, which may compile, is left out."""
    times = []
    for _ in range(_STARTS + 1):
        began = time.perf_counter()
        subprocess.run(command, cwd=deno.REPOSITORY, check=True, stdout=subprocess.DEVNULL, env=_environment())
        times.append(time.perf_counter() - began)
    return median(times[1:])


def _environment() -> dict[str, str]:
    return deno.environment({"PYTHONPATH": str(deno.REPOSITORY)})


def _base_install(directory: Path) -> dict[str, Any]:
    """Install the base lock, and return its megabytes without pip and with the largest packages named."""
    venv.create(directory, with_pip=True)
    python = str(directory / "bin" / "python")
    began = time.perf_counter()
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--require-hashes", "-r",
         str(deno.REPOSITORY / "requirements" / "base.txt")],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    took = time.perf_counter() - began
    subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "pip"], check=True, stdout=sys.stderr)
    (packages,) = (directory / "lib").glob("python*/site-packages")
    sizes = {path.name: _size(path) for path in packages.iterdir()}
    largest = sorted(sizes, key=lambda name: -sizes[name])[:6]
    return {
        "install_mb": round(sum(sizes.values())), "install_seconds": round(took, 1),
        "largest": {name: round(sizes[name]) for name in largest},
    }  # fmt: skip


def _size(path: Path) -> float:
    """Return megabytes."""
    if path.is_file():
        return path.stat().st_size / 1e6
    files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return sum(file.stat().st_size for file in files if not file.is_symlink()) / 1e6


async def measure(documents: int, *, install: bool) -> dict[str, Any]:
    """Measure starts, then memory, then the install."""
    say("starts")
    found: dict[str, Any] = {
        "python_seconds": round(_seconds(sys.executable, "-P", "-c", "pass"), 3),
        "import_worker_seconds": round(_seconds(sys.executable, "-P", "-c", "import worker"), 3),
        "sluice_help_seconds": round(_seconds(sys.executable, "-P", "-m", "worker", "--help"), 3),
    }
    async with world(documents) as made:
        await made.fill(bare=False)
        await made.double.reset()
        say("memory")
        run = await made.work(made.settings(16, 64))
        found |= {"peak_rss_mb": round(run.peak_rss_mb), "documents": documents, "concurrency": 16, "slots": 64}
        found["start_seconds"] = round(run.total - run.steady, 2)
    if install:
        say("a base install")
        with tempfile.TemporaryDirectory(prefix="sluice-base-") as directory:
            found |= await asyncio.to_thread(_base_install, Path(directory))
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--documents", type=click.IntRange(min=2), default=DOCUMENTS, show_default=True)
@click.option("--no-install", is_flag=True, help="Without the base install, which needs a package index.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in the last line.")
def main(documents: int, no_install: bool, as_json: bool) -> None:
    """Measure starts, memory and the size of an install."""

    async def run() -> int:
        show(await measure(documents, install=not no_install), as_json=as_json)
        return 0

    sys.exit(interrupt.run(run()))


if __name__ == "__main__":
    main(prog_name="scripts/bench footprint")
