"""What can go wrong with a job, as one tree; the class alone decides the verdict.

    IngestError                 code, public_message, detail
    ├── Transient               retry     charged; network, 5xx, time-outs, deadlocks
    ├── Throttled               snooze    not charged; a provider's limit, for as long as it says
    ├── Unavailable             snooze    not charged; a service that every document needs does not answer
    ├── OverBudget              snooze    not charged; a daily budget is used up, until the next day begins
    ├── Waiting                 snooze    not charged; another job is doing this work already
    ├── Interrupted             release   not charged; this worker is shutting down
    ├── Moved                   release   not charged; the object was renamed while it was read
    ├── Rejected                discard   this document can never work as it is
    ├── OverQuota               discard   not charged; beyond the tenant's quota, comes back when there is room
    ├── Misconfigured           snooze    not charged; our key, model or dimension is wrong
    ├── Superseded              cancel    the object is gone or has a newer generation
    ├── StaleClaim              nothing   another worker owns the job now
    └── any other exception     retry     charged; `internal` to people, the traceback to the log

Adapters translate what their vendor raises into this tree and chain it (`raise … from exc`).
`public_message` is shown to the tenant's people: it says what happened and what to do, and never
holds a URL, a key or text of the document. `detail` is for operators only.
"""

from __future__ import annotations

from typing import ClassVar, Literal

Verdict = Literal["complete", "retry", "snooze", "release", "cancel", "discard"]


class IngestError(Exception):
    """Something that ended an attempt, with a stable code and a message fit for the tenant's people."""

    verdict: ClassVar[Verdict | None]

    def __init__(self, code: str, public_message: str, *, detail: str | None = None) -> None:
        super().__init__(f"{code}: {public_message}" + (f" ({detail})" if detail else ""))
        self.code = code
        self.public_message = public_message
        self.detail = detail


class Transient(IngestError):
    """It may work later: charged, and tried again with growing pauses."""

    verdict = "retry"


class Throttled(IngestError):
    """A provider asked us to wait `retry_after` seconds: not charged."""

    verdict = "snooze"

    def __init__(self, code: str, public_message: str, *, retry_after: float, detail: str | None = None) -> None:
        super().__init__(code, public_message, detail=detail)
        self.retry_after = retry_after


class Unavailable(IngestError):
    """A service that every document needs does not answer: not charged, and looked at again with growing pauses.

    Five attempts are over in a minute or two, which outages are not. For what a document itself may cause there is
    Transient.
    """

    verdict = "snooze"


class OverBudget(IngestError):
    """A daily budget is used up: not charged, and on again after `retry_after` seconds, when the next day begins.

    Never ended by its age. Whoever raises it has told the operators.
    """

    verdict = "snooze"

    def __init__(self, code: str, public_message: str, *, retry_after: float, detail: str | None = None) -> None:
        super().__init__(code, public_message, detail=detail)
        self.retry_after = retry_after


class Waiting(IngestError):
    """Another job does the same work now; look again after `retry_after` seconds, or when woken."""

    verdict = "snooze"

    def __init__(self, code: str, public_message: str, *, retry_after: float, detail: str | None = None) -> None:
        super().__init__(code, public_message, detail=detail)
        self.retry_after = retry_after


class Interrupted(IngestError):
    """This worker is stopping: the job is handed back at once and not charged."""

    verdict = "release"


class Moved(IngestError):
    """The object was renamed while it was read: handed back at once and not charged."""

    verdict = "release"


class Rejected(IngestError):
    """The document can never work as it is: discarded at once, with what its owner can do."""

    verdict = "discard"


class OverQuota(IngestError):
    """The document is beyond its tenant's quota: given up until there is room, and not charged."""

    verdict = "discard"


class Misconfigured(IngestError):
    """Our own key, model or dimension is wrong: users' attempts are not burnt for it."""

    verdict = "snooze"


class Superseded(IngestError):
    """The object was deleted or overwritten meanwhile: this work is of no use any more."""

    verdict = "cancel"


class StaleClaim(IngestError):
    """The claim no longer stands; whatever this attempt made is dropped."""

    verdict = None


__all__ = [
    "IngestError",
    "Interrupted",
    "Misconfigured",
    "Moved",
    "OverBudget",
    "OverQuota",
    "Rejected",
    "StaleClaim",
    "Superseded",
    "Throttled",
    "Transient",
    "Unavailable",
    "Verdict",
    "Waiting",
]
