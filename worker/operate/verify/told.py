"""How a run and a comparison are shown: a table on a terminal, plain lines in a pipe."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_MARKS = {"failed": "red", "differs": "red", "skipped": "yellow", "noted": "yellow"}
_SHARES = {"fetch": 0.02, "parse": 0.05, "chunk": 0.15, "embed": 0.2, "publish": 0.95}


def show(console: Console, head: Sequence[str], rows: Sequence[Sequence[Any]], mark: int) -> None:
    """Print rows; column `mark` holds the verdict, which is coloured where there are colours."""
    if not console.is_terminal:
        for row in rows:
            console.print("  ".join(str(cell) for cell in row), markup=False, soft_wrap=True)
        return
    table = Table(*head)
    for row in rows:
        table.add_row(*(str(cell) for cell in row), style=_MARKS.get(str(row[mark])))
    console.print(table)


@contextlib.contextmanager
def progress(console: Console) -> Iterator[tuple[Callable[[str], None], Callable[[list[dict[str, Any]]], None]]]:
    """Give what shows a step and what shows the documents: a bar each on a terminal, else a line at each change."""
    if not console.is_terminal:
        yield from _lines(console)
        return
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[doing]}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def moved(rows: list[dict[str, Any]]) -> None:
            for row in rows:
                if row["name"] not in tasks:
                    tasks[row["name"]] = bars.add_task(row["name"], total=1.0, doing="")
                bars.update(tasks[row["name"]], completed=_share(row), doing=_doing(row))

        yield (lambda text: bars.console.print(f"{text} …", markup=False)), moved


def _lines(
    console: Console,
) -> Iterator[tuple[Callable[[str], None], Callable[[list[dict[str, Any]]], None]]]:
    said: dict[str, str] = {}

    def moved(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if said.get(row["name"]) != (doing := _doing(row)):
                said[row["name"]] = doing
                console.print(f"{row['name']}: {doing}", markup=False, soft_wrap=True)

    yield (lambda text: console.print(f"{text} …", markup=False, soft_wrap=True)), moved


def _doing(row: dict[str, Any]) -> str:
    return str((row["stage"] if row["state"] == "processing" else row["state"]) or "waiting")


def _share(row: dict[str, Any]) -> float:
    if row["state"] == "ready":
        return 1.0
    begins = _SHARES.get(row["stage"] or "", 0.0)
    # The stages' shares of a run with the local model; embedding is the one that takes long and tells its progress.
    return begins + (row["progress"] or 0.0) * (0.75 if row["stage"] == "embed" else 0.0)
