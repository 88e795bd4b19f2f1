"""Applies the migrations that the database does not have yet, by the Supabase CLI."""

from __future__ import annotations

import re

from local import migrations, supabase_cli
from local.deploy import history
from local.deploy.connection import connected
from local.deploy.step import Plan
from local.deploy.target import Target
from local.errors import StackError


async def plan(target: Target) -> Plan:
    """Say which migrations wait."""
    ours = history.here(target.project)
    async with connected(target) as connection:
        pending = history.waiting(ours, await history.there(connection))
    if not pending:
        return Plan(f"All {len(ours)} migrations are applied.")
    return Plan(f"{len(pending)} of {len(ours)} migrations wait.", tuple(f"apply {each}" for each in pending))


async def apply(target: Target) -> str:
    """Push them; raises StackError that names the file which failed, and what stands."""
    ours = history.here(target.project)
    async with connected(target) as connection:
        before = await history.there(connection)
    pending = history.waiting(ours, before)
    try:
        if target.admin_url:
            await migrations.push(target.admin_url, target.database_url, target.project)
        else:
            remote, secrets = supabase_cli.database(target.database_url, target.ca_file)
            await supabase_cli.run(
                "db", "push", "--yes", "--skip-vault", *remote, project=target.project, secrets=secrets
            )
    except StackError as exc:
        async with connected(target) as connection:
            left = history.waiting(ours, await history.there(connection))
        if not left:
            raise
        done = len(pending) - len(left)
        # The CLI gives such a file no transaction.
        whole = re.search(r"\bindex\s+concurrently\b", left[0].text or "", re.IGNORECASE) is None
        raise StackError(
            f"{left[0]}.sql failed: {_reason(str(exc))}\n{done} of {len(pending)} were applied and stand; "
            + ("this one was undone" if whole else "what this one did before it failed stands, unrecorded")
            + f", and {len(left) - 1} after it were not tried. Correct it and run this again: it goes on here."
        ) from exc
    return f"Applied {len(pending)} migrations."


def _reason(said: str) -> str:
    """Return the lines of the CLI's answer that are about the failure, without the SQL around it."""
    lines = [line.strip() for line in said.splitlines() if re.search(r"ERROR|SQLSTATE|At statement", line)]
    return " ".join(lines)[:600] or said[-600:]
