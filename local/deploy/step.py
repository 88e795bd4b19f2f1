"""What a step is: it says what it would do, and does it; and what came of each of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

from local.deploy.target import Target
from local.errors import StackError


class Refused(StackError):
    """What is there and what is here disagree: nothing is changed before a person has looked."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a step found, in a sentence; each change that it would make; what a person should look at."""

    said: str
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """A step by its name. `plan` reads only; `apply` makes the changes and returns what was done.

    Both raise StackError when they cannot; what `apply` has done by then is found by the next `plan`.
    """

    name: str
    plan: Callable[[Target], Awaitable[Plan]]
    apply: Callable[[Target], Awaitable[str]] | None = None


class Status(StrEnum):
    """What came of a step."""

    UNCHANGED = "unchanged"
    WOULD_CHANGE = "would change"
    CHANGED = "changed"
    FAILED = "failed"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step, and what came of it."""

    step: str
    status: Status
    said: str
    changes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: bool = False
