"""What this worker counts, for Prometheus; served by `operate.health_port` on a port when one is configured.

A label's values are few and known before: a stage, a verdict, a provider, a code. Never a tenant, a document or a
text. Names say their unit. Counting costs a microsecond, so it is done whether anybody asks or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from worker.errors import IngestError

REGISTRY = CollectorRegistry()
# Without a second line for each counter, which says when it was made.
disable_created_metrics()  # type: ignore[no-untyped-call]

# From a text that is over at once to a book at a remote parser.
_STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


def _counter(name: str, what: str, *labels: str) -> Counter:
    return Counter(f"sluice_{name}", what, labels, registry=REGISTRY)


def _gauge(name: str, what: str, *labels: str) -> Gauge:
    return Gauge(f"sluice_{name}", what, labels, registry=REGISTRY)


CLAIMS = _counter("claims", "Jobs claimed by this worker.")
JOBS = _counter("jobs", "Attempts of this worker that ended, by verdict.", "verdict")
RESCUED = _counter("rescued", "Jobs whose lease ran out that this worker returned to the queue.")
CHUNKS = _counter("chunks", "Chunks that this worker published.")
TOKENS = _counter("tokens", "Tokens that this worker had embedded, as billed or else as counted.", "provider")
REQUESTS = _counter("provider_requests", "Requests of this worker to parsers and embedders.", "provider")
ERRORS = _counter("provider_errors", "Those that failed, by the code that the job gets.", "provider", "code")
STAGE_SECONDS = Histogram(
    "sluice_stage_seconds", "How long a stage took that was left in good order.", ("stage",),
    registry=REGISTRY, buckets=_STAGE_BUCKETS,
)  # fmt: skip

QUEUE_JOBS = _gauge(
    "queue_jobs", "Jobs of the whole queue by state; a count ends at 100,000. scheduled: waits for its time.", "state"
)
QUEUE_OLDEST = _gauge("queue_oldest_seconds", "For how long the oldest job that is due has waited.")
QUEUE_PAUSED = _gauge("queue_paused", "1 while an operator has paused the queue.")
DATABASE_UP = _gauge("database_up", "1 when the database answered this scrape; 0: the queue's figures are unknown.")
LEASES = _gauge("leases_held", "Jobs that this worker works on.")
SLOTS = _gauge("slots", "Jobs that it may work on at a time.")
READY = _gauge("ready", "1 when the database answers, claims are possible and the worker does not drain.")
WAKEUP_WAY = _gauge("wakeup_way", "1 for the way on which wake-ups come now.", "way")
LOOP_LATE = _gauge("loop_late_seconds", "By how much the event loop came late to the last heartbeat.")
MEMORY = _gauge("resident_memory_bytes", "Resident memory of this process, its children not counted.")
BUILD = _gauge("build_info", "1, with what runs here.", "version", "git_sha")

# So that a rate is known before the first of them.
for _verdict in ("complete", "retry", "snooze", "release", "cancel", "discard", "stale"):
    JOBS.labels(_verdict)
for _stage in ("fetch", "parse", "chunk", "embed", "publish"):
    STAGE_SECONDS.labels(_stage)


@contextmanager
def asking(provider: str) -> Iterator[None]:
    """Count one request to a provider, and its failure."""
    REQUESTS.labels(provider).inc()
    try:
        yield
    except IngestError as exc:
        ERRORS.labels(provider, exc.code).inc()
        raise
    except Exception:
        ERRORS.labels(provider, "internal").inc()
        raise
