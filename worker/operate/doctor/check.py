"""What a check is, what it finds, and what it can find.

A check is an async function of the examination. It returns a sentence when all is well, and raises Ill with one of
its problems, or NotUsed where there is nothing to look at. It changes nothing in the project.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from worker.operate.doctor.examination import Examination

Layer = Literal["settings", "network", "database", "api", "provider", "machine"]
Status = Literal["ok", "warning", "failed", "skipped"]
LAYERS: tuple[Layer, ...] = ("settings", "network", "database", "api", "provider", "machine")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that may be wrong; `message` and `remedy` are sentences with {places} for what was found."""

    code: str
    message: str
    remedy: str
    warning: bool = False

    def found(self, **values: object) -> Ill:
        """Return what to raise; every place of both sentences must have its value."""
        return Ill(self, self.message.format(**values), self.remedy.format(**values))


class Ill(Exception):
    """A check found a problem."""

    def __init__(self, problem: Problem, message: str, remedy: str) -> None:
        super().__init__(message)
        self.problem = problem
        self.message = message
        self.remedy = remedy


class NotUsed(Exception):
    """There is nothing to check here: the settings do not ask for it."""


class NotSet(NotUsed):
    """The setting that says what to look at is missing, which another check tells; the run has failed."""


@dataclass(frozen=True, slots=True)
class Check:
    """`needs` names checks that must have been well, `unless` checks whose failure is this one's too."""

    name: str
    layer: Layer
    about: str
    run: Callable[[Examination], Awaitable[str]]
    problems: tuple[Problem, ...]
    needs: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    seconds: float = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one check; `code` and `remedy` are None when all is well."""

    name: str
    layer: Layer
    status: Status
    code: str | None
    message: str
    remedy: str | None
    milliseconds: int

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


TIMED_OUT = Problem(
    "check_timed_out",
    "The check {name} had no answer after {seconds:g} seconds.",
    "See whether what it asks is overloaded or cut off by a firewall that drops packets, then run it again alone: "
    "sluice doctor --only {name}",
)
BROKEN = Problem(
    "check_broken",
    "The check {name} itself failed with {error}, so it says nothing about the installation.",
    "Run it again alone (sluice doctor --only {name}); if it fails again, report it with this line.",
)
GENERAL = (TIMED_OUT, BROKEN)
