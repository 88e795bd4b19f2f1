"""Fetches what deno.lock pins and the Supabase CLI's binary into Deno's cache, so that later starts need no network."""

from __future__ import annotations

import os
import subprocess
import sys

from local import deno
from local.errors import StackError

# Each program that is run or imported by a computed name; Deno finds the rest itself.
PROGRAMS = (
    "local/server/main.ts",
    "local/server/storage/mod.ts",
    "local/bootstrap/auth.ts",
    "local/demo/client.ts",
    "tests/integration/clients/tus_client.ts",
)


def fetch() -> None:
    """Fill the cache; without effect, and quick, where it is filled.

    Raises StackError with Deno's words.
    """
    # Deno trusts its own list of authorities only; behind a company's proxy the machine's list is wanted too.
    os.environ.setdefault("DENO_TLS_CA_STORE", "mozilla,system")
    functions = sorted(str(path) for path in deno.REPOSITORY.glob("supabase/functions/*/index.ts"))
    done = subprocess.run(
        [deno.executable(), "cache", "--config", "deno.json", *PROGRAMS, *functions],
        cwd=deno.REPOSITORY, env=deno.environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise StackError(
            f"Deno's packages could not be fetched. Check the network and try again.\n{done.stderr[-2000:].strip()}"
        )
    deno.supabase_cli()


if __name__ == "__main__":
    try:
        fetch()
    except StackError as error:
        sys.exit(str(error))
