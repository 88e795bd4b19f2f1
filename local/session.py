"""Stack and worker together, for as long as somebody looks on."""

from __future__ import annotations

import asyncio

from local.stack import Stack
from local.worker_process import Worker


def described(stack: Stack) -> str:
    """Return the lines that a person needs to work with the stack: URL, keys and the database, secrets included."""
    facts = {
        "SUPABASE_URL": stack.api_url,
        "SUPABASE_PUBLISHABLE_KEY": stack.publishable_key,
        "SUPABASE_SECRET_KEY": stack.secret_key,
        "DATABASE_URL (worker)": stack.worker_database_url,
        "DATABASE_URL (postgres)": stack.database_url,
    }
    return "\n".join(f"  {name:<26} {value}" for name, value in facts.items())


async def until_one_ends(stack: Stack, worker: Worker) -> None:
    """Wait for ever; raises StackError when the server or the worker ends by itself."""
    both = [asyncio.ensure_future(ending) for ending in (stack.ended(), worker.ended())]
    try:
        done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
