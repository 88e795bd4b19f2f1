"""`sluice erase`: a tenant's objects, by the Storage API, and then every row of it."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

import click

from worker.db.pool import Database
from worker.errors import Unavailable
from worker.operate.terminal import ask
from worker.pipeline.fetch import ObjectStore
from worker.settings import Settings

_OBJECTS_A_REQUEST = 100
_ROWS_A_BATCH = 1000
_ROUNDS = 10


@dataclass(slots=True)
class Erased:
    """What went of one tenant: objects, and rows by table."""

    tenant: UUID
    objects: int = 0
    rows: Counter[str] = field(default_factory=Counter)

    def told(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {"tenant": str(self.tenant), "objects": self.objects, "rows": dict(sorted(self.rows.items()))}


@click.command()
@click.argument("tenant", type=click.UUID, required=False)
@click.option("--deleted-users", is_flag=True, help="Every user's own tenant whose user deleted their account.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def erase(tenant: UUID | None, deleted_users: bool, yes: bool, as_json: bool) -> None:
    """Erase TENANT: its files, and every row that is its own. There is no way back but a backup.

    DATABASE_URL must be an operator's, the owner postgres: the worker's own login may not erase. It may be
    interrupted and run again. While it runs nothing keeps members from uploading: what comes meanwhile
    goes too, or stops it, and the next run finds it.

    The audit keeps the tenant's id. A user who still exists gets an empty tenant with their next upload.

    Exit codes: 0 done, also when there was nothing; 1 it failed or was declined; 2 wrong usage or settings.
    """
    if (tenant is None) != deleted_users:
        raise click.UsageError("Give the id of one tenant, or --deleted-users.")
    erased = ask(partial(_erase, tenants=None if tenant is None else [tenant], sure=yes))
    if as_json:
        click.echo(json.dumps({"erased": [one.told() for one in erased]}))
        return
    for one in erased:
        rows = ", ".join(f"{count} of {name}" for name, count in sorted(one.rows.items()))
        click.echo(f"{one.tenant}: {one.objects} objects; rows: {rows or 'none'}.")
    if not erased:
        click.echo("There is nothing to erase.")


async def _erase(db: Database, settings: Settings, *, tenants: list[UUID] | None, sure: bool) -> list[Erased]:
    found = await db.fetch("erasable", tenants)
    if found and not sure:
        for row in found:
            click.echo(
                f"{row['tenant_id']}  {row['name'] or '(no row of its own)'}: {row['members']} members, "
                f"{row['documents']} documents, {row['jobs']} jobs",
                err=True,
            )
        click.confirm("Erase all of this, and the files?", abort=True, err=True)
    store = ObjectStore(settings.supabase_url, settings.supabase_secret_key.get_secret_value())
    try:
        return [await erase_tenant(db, store, row["tenant_id"]) for row in found]
    finally:
        await store.close()


async def erase_tenant(db: Database, store: ObjectStore, tenant: UUID) -> Erased:
    """Remove the objects, then the rows; `db` must be the owner's.

    Raises the errors of errors.py: whatever went until then is gone, and the next call goes on. Unavailable
    when Storage keeps what it was told to remove.
    """
    erased = Erased(tenant)
    for _ in range(_ROUNDS):
        await _remove_objects(db, store, erased)
        # Null: somebody uploaded meanwhile.
        while (said := await db.fetchval("erase_rows", tenant, _ROWS_A_BATCH)) is not None:
            gone = json.loads(said)
            if not gone:
                return erased
            erased.rows.update(gone)
    raise Unavailable(
        "still_uploading",
        f"Files of tenant {tenant} keep coming while it is erased. Remove its members or end their sessions first, "
        "then run it again.",
    )


async def _remove_objects(db: Database, store: ObjectStore, erased: Erased) -> None:
    # Listed anew after each request, until nothing is left.
    while objects := await db.fetch("objects_of", erased.tenant, _OBJECTS_A_REQUEST):
        for bucket, rows in groupby(objects, key=lambda row: row["bucket_id"]):
            removed = await store.remove(bucket, [row["name"] for row in rows])
            if removed == 0:
                raise Unavailable(
                    "objects_kept",
                    f"Storage removed none of the objects that it was told to remove in bucket {bucket}. "
                    "Nothing else was erased; run it again, and look at Storage's log if it stays so.",
                )
            erased.objects += removed
