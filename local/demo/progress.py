"""What a person sees while documents move: a table that redraws itself, or plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

STAGES = ("fetch", "parse", "chunk", "embed", "publish")
State = Literal["uploading", "pending", "processing", "ready", "failed", "cancelled", "refused"]
_STYLES = {"ready": "green", "failed": "red", "refused": "red", "cancelled": "yellow"}


@dataclass(slots=True)
class Row:
    """One file as its owner sees it now."""

    name: str
    id: str | None = None
    state: State = "uploading"
    stage: str | None = None
    progress: float | None = None
    attempt: int = 0
    pages: int | None = None
    chunks: int | None = None
    title: str | None = None
    code: str | None = None
    message: str | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        return self.state in ("ready", "failed", "cancelled", "refused")

    @property
    def doing(self) -> str:
        """What happens now, in a word or two."""
        if self.state != "processing" or self.stage is None:
            waits = self.code is not None and not self.settled
            return f"waits: {self.code}" if waits else {"pending": "waiting"}.get(self.state, self.state)
        return self.stage if self.attempt <= 1 else f"{self.stage} (attempt {self.attempt})"

    @property
    def done(self) -> float:
        """How far it is, from 0 to 1: the stages behind it, and what the worker reports of this one."""
        if self.state == "ready":
            return 1.0
        if self.stage not in STAGES:
            return 0.0
        return (STAGES.index(self.stage) + (self.progress or 0)) / len(STAGES)

    def hear(self, message: dict[str, Any]) -> None:
        """Take over what a channel says of a job that is not at its end."""
        self.state = "processing" if message["state"] == "running" else "pending"
        self.stage, self.progress, self.code = message["stage"], message["progress"], message["error_code"]

    def see(self, document: dict[str, Any], job: dict[str, Any] | None) -> None:
        """Take over what the two rows of the database say."""
        self.state, self.title = document["state"], document["title"]
        self.pages, self.chunks = document["page_count"], document["chunk_count"]
        # Of a job that waits for another try the reason stands in the job, of a failed one in the document.
        source = job if job is not None and not self.settled else document
        self.code, self.message = source["error_code"], source["error_message"]
        if job is not None:
            self.stage, self.progress, self.attempt = job["stage"], job["progress"], job["attempt"]


class Display(Protocol):
    """Shows rows as often as it is told to."""

    def show(self, rows: Sequence[Row]) -> None: ...


@contextmanager
def display(console: Console) -> Iterator[Display]:
    """Give the display that fits the console; a live one leaves its last picture behind."""
    if not console.is_terminal:
        yield _Lines(console)
        return
    with Live(console=console, refresh_per_second=8) as live:
        yield _Live(live)


class _Live:
    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, rows: Sequence[Row]) -> None:
        self._live.update(_table(rows, self._live.console.height - 4))


class _Lines:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._said: dict[str, str] = {}

    def show(self, rows: Sequence[Row]) -> None:
        for row in rows:
            line = _summary(row)
            if self._said.get(row.name) != line:
                self._said[row.name] = line
                self._console.print(f"  {row.name}: {line}", markup=False, highlight=False, soft_wrap=True)


def _summary(row: Row) -> str:
    if row.state == "ready":
        return f"ready, {_counted(row.pages, 'page')}, {_counted(row.chunks, 'chunk')}"
    # Quarters: a line for every percent would be a wall.
    quarter = f" {int((row.progress or 0) * 4) * 25} %" if row.stage == "embed" and not row.settled else ""
    return row.doing + quarter


def _table(rows: Sequence[Row], height: int) -> Table:
    # More files than lines: those that move first, the rest as a number.
    order = sorted(rows, key=lambda row: (row.settled, row.state != "processing")) if len(rows) > height else rows
    shown = order[: max(1, height)]
    table = Table(box=None, pad_edge=False)
    table.add_column("document", no_wrap=True, overflow="ellipsis", max_width=44)
    table.add_column("", width=24)
    table.add_column("now", no_wrap=True)
    table.add_column("pages", justify="right")
    table.add_column("chunks", justify="right")
    for row in shown:
        style = _STYLES.get(row.state, "")
        now = f"[{style}]{escape(row.doing)}[/]" if style else escape(row.doing)
        bar = ProgressBar(total=1.0, completed=row.done, width=24)
        table.add_row(escape(row.name), bar, now, _number(row.pages), _number(row.chunks))
    if len(shown) < len(rows):
        table.add_row(f"and {len(rows) - len(shown)} more", "", "", "", "")
    return table


def _counted(value: int | None, noun: str) -> str:
    return f"{value or 0:,} {noun}{'' if value == 1 else 's'}"


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
