"""Facts: what `ingest.explain_job` gathered about a job, read with types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from worker.operate.explain.codes import Code, Layer, code_of
from worker.operate.words import moment

_ALIVE_SECONDS = 60.0
"""Without heartbeats: how long ago a worker may have claimed last."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An event that set the job back, by the time it happened."""

    at: datetime
    event: str
    code: str
    layer: Layer


class Facts:
    """One snapshot; `tenant_cap` is SLUICE_TENANT_CAP as it stands where this runs."""

    def __init__(self, told: Mapping[str, Any], *, tenant_cap: int) -> None:
        self.told = told
        self.job: Mapping[str, Any] | None = told["job"]
        self.document: Mapping[str, Any] | None = told["document"]
        self.now = moment(told["now"])
        self._tenant_cap = tenant_cap

    def __getitem__(self, name: str) -> Any:
        """Return a part as it was gathered."""
        return self.told[name]

    @property
    def id(self) -> int | None:
        """The job's id."""
        return self.job["id"] if self.job else None

    @property
    def state(self) -> str | None:
        """The job's state."""
        return self.job["state"] if self.job else None

    @property
    def code(self) -> str | None:
        """The code that the job has now."""
        return self.job["error_code"] if self.job else None

    @property
    def kind(self) -> str | None:
        """The kind of that code."""
        return code_of(self.code).kind if self.code else None

    @property
    def due(self) -> datetime:
        """When a waiting job may be claimed."""
        assert self.job is not None
        return moment(self.job["scheduled_at"])

    @property
    def asleep(self) -> bool:
        """Whether the job waits for a time that is yet to come."""
        return self.state == "available" and self.due > self.now

    @property
    def overdue(self) -> float:
        """For how many seconds the job could have been claimed."""
        return (self.now - self.due).total_seconds() if self.state == "available" else 0.0

    @property
    def events(self) -> Sequence[Mapping[str, Any]]:
        """The timeline, oldest first."""
        events: Sequence[Mapping[str, Any]] = self.told["events"]
        return events

    @property
    def cap(self) -> int:
        """How many jobs this tenant may run at once."""
        quota = self.told["tenant"]["quota_running"]
        return self._tenant_cap if quota is None else min(self._tenant_cap, quota)

    def layer(self, code: str | None) -> Layer:
        """Return the layer of a code, which for two kinds depends on what was raised.

        A service that nobody reached is a matter of the network; one that answered 503 is not.
        """
        known: Code = code_of(code)
        details = self.told["details"] if code == self.code else None
        if known.kind == "unavailable" and details and details["fault"] and not details["fault"].startswith("HTTP"):
            return "network"
        if code == "provider_rate_limited" and (self.provider or "").startswith("llama"):
            return "parser"
        return known.layer

    @cached_property
    def provider(self) -> str | None:
        """The provider that asked us to wait."""
        details = self.told["details"]
        if details and details["provider"]:
            return str(details["provider"])
        blocked = [limit["provider"] for limit in self.told["rate_limits"] if limit["blocked"]]
        return blocked[0] if len(blocked) == 1 else None

    @cached_property
    def failures(self) -> Sequence[Failure]:
        """What set the job back since it was made or last retried by hand, without what it has overcome.

        A failure is overcome when a stage behind it was left later: Storage that did not answer is no cause of a job
        that has fetched its file since. So the first of these is the first cause, and the last the last symptom.
        """
        found: list[Failure] = []
        for event in self.events:
            if event["event"] == "retry" and (event["detail"] or {}).get("by"):
                found.clear()
            elif event["event"] == "stage":
                found = [failure for failure in found if _STAGES.get(failure.layer) != event["stage"]]
            elif event["code"] and event["event"] in ("retry", "snooze", "rescue", "discard"):
                layer = self.layer(event["code"])
                found.append(Failure(moment(event["at"]), event["event"], event["code"], layer))
        return found

    @property
    def alive(self) -> bool | None:
        """Whether a worker lives: by its heartbeat or by what it did last; None when nothing says so or otherwise."""
        workers = self.told["workers"]
        if workers["heartbeats"]:
            return bool(workers["fresh"])
        last = workers["last_claim_at"]
        if workers["leases"] or (last and (self.now - moment(last)).total_seconds() < _ALIVE_SECONDS):
            return True
        return None

    def alert(self, kind: str, *subjects: str | None) -> Mapping[str, Any] | None:
        """Return the open alert of this kind about one of these subjects."""
        for alert in self.told["alerts"]:
            if alert["kind"] == kind and alert["subject"] in subjects:
                found: Mapping[str, Any] = alert
                return found
        return None


# A stage that was left says that these layers did their part.
_STAGES: Mapping[Layer, str] = {"storage": "fetch", "parser": "parse", "embedder": "embed"}
