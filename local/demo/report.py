"""What a run found out: the object of `--json`, and the same for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

# What people can do about a code is in the document's own message; these come from outside of the worker.
_ADVICE = {
    "413": "The bucket takes files up to 50 MiB: split the file.",
    "415": "The bucket does not take this type of file.",
}


@dataclass(slots=True)
class Failure:
    """A file that did not become searchable; `message` says what to do."""

    document: str
    code: str
    message: str


@dataclass(slots=True)
class Hit:
    """One search result as it is cited."""

    document: str
    page: int
    snippet: str
    heading: str | None = None
    similarity: float | None = None


@dataclass(slots=True)
class Answered:
    """A question and what its owner found, best first."""

    ask: str
    hits: list[Hit] = field(default_factory=list)


@dataclass(slots=True)
class Isolation:
    """What the owner finds, and what a stranger finds who asks the same; `stranger_*` must be 0."""

    owner_hits: int = 0
    stranger_hits: int = 0
    owner_rows: int = 0
    stranger_rows: int = 0
    stranger_may_write: bool = False

    @property
    def holds(self) -> bool:
        """Whether the stranger finds nothing of what the owner does find."""
        found = self.owner_hits > 0 and self.owner_rows > 0
        return found and self.stranger_hits == 0 and self.stranger_rows == 0 and not self.stranger_may_write


@dataclass(slots=True)
class Report:
    """One run; `seconds` is from the first upload until the last document settled, `error` what ended the run early.

    `messages` counts the progress that came by Realtime.
    """

    documents: int = 0
    ready: int = 0
    pages: int = 0
    chunks: int = 0
    embeddings: int = 0
    messages: int = 0
    seconds: float = 0.0
    start_seconds: float = 0.0
    isolation: Isolation = field(default_factory=Isolation)
    questions: list[Answered] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether every document is ready and searchable, and isolation holds."""
        complete = 0 < self.documents == self.ready and self.chunks == self.embeddings
        return complete and self.isolation.holds and self.error is None

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return asdict(self)


def print_failures(console: Console, report: Report) -> None:
    """Say of each failed file what happened and what to do."""
    for failure in report.failures:
        advice = _ADVICE.get(failure.code, "")
        line = f"✗ {failure.document}: {failure.message} {advice}".rstrip() + f" [{failure.code}]"
        console.print(Text(line, style="red"), soft_wrap=True)


def print_question(console: Console, answered: Answered, shown: int = 3) -> None:
    """Print a question and its best hits, each with where it stands."""
    console.print()
    console.print(Text(f"? {answered.ask}", style="bold"), soft_wrap=True)
    if not answered.hits:
        console.print("  nothing found")
    for hit in answered.hits[:shown]:
        where = f"  {hit.document}, page {hit.page}" + (f", {hit.heading}" if hit.heading else "")
        console.print(Text(where, style="cyan"), soft_wrap=True)
        console.print(Text(f"    {hit.snippet}"), soft_wrap=True)


def print_isolation(console: Console, isolation: Isolation) -> None:
    """Print what the two people find, side by side."""
    console.print()
    console.print(
        f"The owner's questions give {isolation.owner_hits} hits; a second user's give {isolation.stranger_hits}."
    )
    console.print(f"The owner sees {isolation.owner_rows} rows and objects; the second user {isolation.stranger_rows}.")
    if isolation.stranger_may_write:
        console.print(Text("The second user could write into the owner's folder.", style="red"))


def print_summary(console: Console, report: Report) -> None:
    """Print the run's figures in two lines."""
    console.print()
    rate = f", {report.chunks / report.seconds:.0f} chunks a second" if report.seconds else ""
    console.print(
        f"{report.ready} of {report.documents} documents are searchable: {report.pages} pages, {report.chunks} chunks, "
        f"{report.embeddings} with a vector, in {report.seconds:.1f} s{rate}; "
        f"starting took {report.start_seconds:.1f} s.",
        soft_wrap=True,
    )
    if report.ready and not report.isolation.holds:
        console.print(Text("Isolation was not shown: see the two lines above.", style="red"))
