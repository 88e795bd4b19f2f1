"""Remove what a run made, and say what stays."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from worker.db.pool import Database
from worker.errors import IngestError, Misconfigured
from worker.operate.erase import erase_tenant
from worker.operate.verify.checks import Checks
from worker.operate.verify.person import Refused, Target, remove_user
from worker.pipeline.fetch import ObjectStore

# A worker that still reads one of the files notices when it next renews or reports, and writes its bill after that.
_ROUNDS = 10
_PAUSE_SECONDS = 1.5
# What the worker's login may not remove; it goes with retention, or by `sluice erase` as the owner.
_HISTORY = frozenset({
    "auth.users", "public.tenants", "public.jobs", "public.job_events", "public.pages", "ingest.parses",
    "ingest.embeddings", "ingest.usage", "ingest.usage_days", "ingest.page_months", "ingest.turns", "ingest.leases",
})  # fmt: skip


async def clean_up(
    db: Database, store: ObjectStore, target: Target, users: Sequence[str], objects: set[tuple[str, str]],
    checks: Checks, *, whole: bool,
) -> dict[str, Any]:  # fmt: skip
    """Remove the objects, rows and users of a run, and return what is left of them, by table.

    `whole` says that the run came to its end: otherwise a worker may still be at it, and what it writes is waited for.
    Never raises what the target says: that is in what is returned.
    """
    tenants = [UUID(user) for user in users if user]
    problems: list[str] = []
    owner = True
    left: dict[str, int] = {}
    quiet = 0
    for _ in range(_ROUNDS):
        problems = []  # what the next round puts right was none
        for tenant in tenants:
            owner = await _erase(db, store, tenant, objects, problems) and owner
        for user in users:
            await _remove_user(db, target, user, problems)
        left = await _left(db, tenants, problems)
        quiet = 0 if left and owner else quiet + 1
        # Twice in a row where a worker may be at work: the row of a moment ago may not be the last one.
        if not owner or quiet > (0 if whole else 2):
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    told = ", ".join(f"{count} of {table}" for table, count in sorted(left.items()))
    if left and not owner and set(left) <= _HISTORY:
        ids = " ".join(str(tenant) for tenant in tenants)
        checks.skip(
            "cleanup.left", "run",
            f"DATABASE_URL may not erase, so history stays: {told}. As the owner: sluice erase TENANT, for {ids}"
            + (", and remove these users in Auth" if "auth.users" in left else ""),
        )  # fmt: skip
    else:
        said = "; ".join([*dict.fromkeys(problems), *([told] if told else [])])
        checks.add("cleanup.left", "run", not left and not problems, said or "nothing is left")
    return {"rows": left, "users": [str(tenant) for tenant in tenants] if left else [], "problems": problems}


async def _erase(
    db: Database, store: ObjectStore, tenant: UUID, objects: set[tuple[str, str]], problems: list[str]
) -> bool:
    """Erase a tenant and return True; False where this login may not, and then the objects went by their names."""
    try:
        await erase_tenant(db, store, tenant)
    except Misconfigured:
        for bucket, name in sorted(objects):
            if name.startswith(f"{tenant}/"):
                try:
                    await store.remove(bucket, [name])
                except IngestError as exc:
                    problems.append(f"an object stays: {exc.public_message}")
        return False
    except IngestError as exc:
        problems.append(f"tenant {tenant} was not erased: {exc.public_message}")
    return True


async def _remove_user(db: Database, target: Target, user: str, problems: list[str]) -> None:
    """By Auth's administration; where it has none (the local stack), by the database, as the owner."""
    try:
        await remove_user(target, user)
    except (Refused, IngestError):
        try:
            await db.fetchval("remove_verify_users", [UUID(user)])
        except IngestError as exc:
            problems.append(f"user {user} stays: {exc.public_message}")


async def _left(db: Database, tenants: list[UUID], problems: list[str]) -> dict[str, int]:
    try:
        counted: dict[str, int] = json.loads(await db.fetchval("rows_of", tenants))
    except IngestError as exc:
        problems.append(f"what is left could not be counted: {exc.public_message}")
        return {}
    return {table: count for table, count in counted.items() if count and table != "ingest.audit"}
