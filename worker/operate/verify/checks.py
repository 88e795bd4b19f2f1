"""What a run finds: checks by name, each with what was seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold: `name` is the same in every run, `subject` says of what, `seen` what was found."""

    name: str
    subject: str
    verdict: Verdict
    seen: str


@dataclass(slots=True)
class Checks:
    """The checks of a run, in the order in which they were made."""

    made: list[Check] = field(default_factory=list)

    def add(self, name: str, subject: str, good: bool, seen: str) -> bool:
        """Note a check and return whether it passed; `seen` holds counts and numbers, never text of a document."""
        self.made.append(Check(name, subject, "passed" if good else "failed", seen))
        return good

    def none(self, name: str, subject: str, wrong: Iterable[object], of: str) -> bool:
        """Note that there is nothing wrong among `of`, or how much and the first few."""
        found = [str(one) for one in wrong]
        shown = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
        return self.add(name, subject, not found, f"{len(found)} wrong: {shown}" if found else of)

    def skip(self, name: str, subject: str, why: str) -> None:
        """Note that a check could not be made here, and why: that is never a pass."""
        self.made.append(Check(name, subject, "skipped", why))

    @property
    def failed(self) -> list[Check]:
        """Return the checks that failed."""
        return [check for check in self.made if check.verdict == "failed"]

    def told(self) -> list[dict[str, Any]]:
        """Return them as JSON has them."""
        return [asdict(check) for check in self.made]
