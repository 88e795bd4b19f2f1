"""Ctrl-C that stops everything in order: the first one cancels what runs, and later ones wait with it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any

INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(main: Coroutine[Any, Any, int]) -> int:
    """Run `main` and return its exit status, or 130 after Ctrl-C, SIGTERM or a closed terminal.

    `main` is cancelled once and cleans up in its `finally`s; whatever else it raises on the way out is then
    a consequence (a child that got the same Ctrl-C), not news.
    """
    interrupted = False
    task: asyncio.Task[int] | None = None

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            return
        interrupted = True
        # Cancelled while it starts a child, asyncio kills and reaps it, then warns that somebody did.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        if task is not None:
            task.get_loop().call_soon_threadsafe(task.cancel)

    async def watched() -> int:
        nonlocal task
        task = asyncio.ensure_future(main)
        if interrupted:
            task.cancel()
        return await task

    # Not loop.add_signal_handler: that one hears nothing while a blocking start of Postgres runs.
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        with asyncio.Runner() as runner:
            return runner.run(watched())
    except BaseException:
        if not interrupted:
            raise
        sys.stderr.write("\rStopped; nothing is left running.\n")
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
