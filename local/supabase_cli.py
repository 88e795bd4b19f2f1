"""Runs the Supabase CLI: without telemetry, without a person, and with no secret among its arguments."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from local import deno
from local.errors import StackError

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Where the CLI finds the management API, for who has one of their own; without it, Supabase's.
_KEPT = ("SUPABASE_PROFILE",)


async def run(
    *arguments: str,
    project: Path = deno.REPOSITORY,
    secrets: Mapping[str, str] | None = None,
    given: bytes | None = None,
    timeout: float = 300,
) -> str:
    """Run the CLI in `project` and return its standard output.

    `secrets` go by its environment and `given` by its standard input: arguments can be read by every user of the
    machine. Raises StackError with what it said; what it was doing may be half done after the timeout.
    """
    cli = await asyncio.to_thread(deno.supabase_cli)
    home = deno.cache_directory() / "home"
    home.mkdir(parents=True, exist_ok=True)
    environment = deno.environment(
        {name: os.environ[name] for name in _KEPT if name in os.environ}
        | {
            "HOME": str(home),
            "SUPABASE_TELEMETRY_DISABLED": "1",
            "SUPABASE_NO_KEYRING": "1",
            "SUPABASE_NO_UPDATE_NOTIFIER": "1",
            "DO_NOT_TRACK": "1",
        }
        | dict(secrets or {})
    )
    process = await asyncio.create_subprocess_exec(
        str(cli), *arguments, "--workdir", str(project), "--agent", "no", env=environment, cwd=project,
        stdin=asyncio.subprocess.DEVNULL if given is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(given), timeout)
    except BaseException as exc:
        if process.returncode is None:
            process.kill()
            await process.wait()
        if isinstance(exc, TimeoutError):
            raise StackError(f"supabase {' '.join(arguments[:2])} took longer than {timeout:.0f} s.") from exc
        raise
    if process.returncode != 0:
        said = (err + out).decode(errors="replace").strip()
        raise StackError(f"supabase {' '.join(arguments[:2])} failed with exit status {process.returncode}:\n{said}")
    return out.decode()


def database(url: str, ca_file: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the arguments that name a database, and the environment with its password and what TLS must be.

    TLS is off on loopback and required elsewhere, with `ca_file` verified: the CLI's own default falls back to
    plaintext.
    """
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    remote = urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.hostname}{port}"))
    tls = {"PGSSLMODE": "disable"} if parts.hostname in _LOOPBACK else {"PGSSLMODE": "require"}
    if ca_file:
        tls = {"PGSSLMODE": "verify-full", "PGSSLROOTCERT": ca_file}
    return ["--remote", remote], tls | {"PGPASSWORD": unquote(parts.password or "")}
