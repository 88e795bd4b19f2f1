"""Records every row event on storage.objects, rolled-back ones included.

A trigger writes each event to the server's log, which no rollback takes back; whether its transaction was
committed is asked afterwards. Install it as the superuser; it also looks whether the row's file is there.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

# Definer's rights, for the look at the file; `role` still names the caller's role then.
_INSTALL = """
create schema recorded;
create table recorded.settings (directory text not null);
create function recorded.record() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  r jsonb := to_jsonb(case when tg_op = 'DELETE' then old else new end);
  claims jsonb := nullif(current_setting('request.jwt.claims', true), '')::jsonb;
begin
  if r ->> 'bucket_id' not like 'recorded%' then
    return null;
  end if;
  raise log 'storage_event %', jsonb_build_object(
    'op', lower(tg_op), 'xid', pg_current_xact_id()::text, 'role', current_setting('role'),
    'claims_role', claims ->> 'role', 'sub', nullif(current_setting('request.jwt.claim.sub', true), ''),
    'operation', current_setting('storage.operation', true), 'new', r,
    'old', case when tg_op = 'UPDATE' then to_jsonb(old) end,
    'file', (pg_stat_file((select directory from recorded.settings) || '/' || (r ->> 'version'), true)).size is not null
  );
  return null;
end $$;
create trigger recorded after insert or update or delete on storage.objects
  for each row execute function recorded.record();
"""
_FULL = {"eTag", "size", "mimetype", "cacheControl", "lastModified", "contentLength", "httpStatusCode"}
_IGNORED = {"path_tokens"}


@dataclass(frozen=True)
class Event:
    """One row event, as the recording of the real server describes it."""

    op: str
    committed: bool
    role: str
    user: bool
    """Whether a user's id was in the claims."""
    operation: str
    name: str
    probe_version: bool
    """Whether the version was '1' rather than a UUID."""
    owner: str | None
    file: bool
    metadata: str
    """`full`, `partial` (type and length), or the keys themselves."""
    user_metadata: str = "null"
    changed: tuple[str, ...] = ()


class Recorder:
    """Reads events from the server's log."""

    def __init__(self, admin: asyncpg.Connection, log: Path) -> None:
        self._admin = admin
        self._log = log
        self._offset = log.stat().st_size

    async def raw(self) -> list[dict[str, object]]:
        """Return what was recorded since the last call."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        self._offset += len(text)
        lines = [line for line in text.decode().splitlines() if "LOG:  storage_event " in line]
        return [json.loads(line.split("storage_event ", 1)[1]) for line in lines]

    async def events(self) -> list[Event]:
        """Return the events since the last call in the recording's form."""
        return [await self._event(record) for record in await self.raw()]

    async def _event(self, record: dict[str, object]) -> Event:
        status = await self._admin.fetchval("select pg_xact_status($1::text::xid8)", record["xid"])
        row, old = record["new"], record["old"]
        assert isinstance(row, dict)
        assert record["claims_role"] == record["role"]
        keys = set(row["metadata"] or {})
        partial = keys == {"mimetype", "contentLength"}
        changed = sorted(k for k in row if isinstance(old, dict) and row[k] != old[k] and k not in _IGNORED)
        return Event(
            op=str(record["op"]),
            committed=status == "committed",
            role=str(record["role"]),
            user=record["sub"] is not None,
            operation=str(record["operation"]),
            name=f"{row['bucket_id']}/{row['name']}",
            probe_version=row["version"] == "1",
            owner=row["owner_id"],
            file=bool(record["file"]),
            metadata="full" if keys == _FULL else "partial" if partial else ",".join(sorted(keys)),
            user_metadata=json.dumps(row["user_metadata"]),
            changed=tuple(changed),
        )


@asynccontextmanager
async def recording(admin: asyncpg.Connection, log: Path, blobs: Path) -> AsyncIterator[Recorder]:
    """Record the events of buckets whose name begins with `recorded`."""
    await admin.execute(_INSTALL)
    try:
        await admin.execute("insert into recorded.settings values ($1)", str(blobs))
        yield Recorder(admin, log)
    finally:
        await admin.execute("drop schema recorded cascade")
