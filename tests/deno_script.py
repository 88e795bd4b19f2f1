"""Runs a TypeScript program that uses the real supabase-js, under Deno, against a stack."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from local import deno
from local.stack import Stack


async def run(script: Path, stack: Stack, *, readable: tuple[Path, ...] = (), **settings: str) -> Any:
    """Run `script` and return the JSON of the last line it prints.

    It gets SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, SUPABASE_SECRET_KEY and `settings` as environment variables,
    may connect to loopback only and read its own folder and `readable`. Raises AssertionError with what it wrote
    when it fails.
    """
    environment = deno.environment(
        {
            "SUPABASE_URL": stack.api_url,
            "SUPABASE_PUBLISHABLE_KEY": stack.publishable_key,
            "SUPABASE_SECRET_KEY": stack.secret_key,
            **settings,
        }
    )
    read = ",".join(str(path) for path in (script.parent, *readable))
    process = await asyncio.create_subprocess_exec(
        *deno.command(script, "--allow-net=127.0.0.1", "--allow-env", f"--allow-read={read}"),
        env=environment,
        cwd=deno.REPOSITORY,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{script.name} failed:\n{(err + out).decode(errors='replace')[-4000:]}"
    return json.loads(out.decode().strip().splitlines()[-1])
