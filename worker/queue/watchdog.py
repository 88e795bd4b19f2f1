"""The watchdog: ends the process when its event loop has not turned for too long.

A loop that is stuck renews no lease and hears no SIGTERM. Its jobs are rescued by others when their leases end; what
is left is to make room for a process that works. Whoever runs workers starts another one.

A thread looks, because the loop cannot. It counts only the time in which it was awake itself: after SIGSTOP or a
laptop's sleep the loop gets its chance. Where the interpreter itself is stuck (code that never gives its lock back)
the thread does not run either; then a timer of the C runtime ends the process, with the stacks and exit code 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import AsyncIterator

from loguru import logger

WEDGED_EXIT_CODE = 70
_WORDS_SECONDS = 3.0


class Watchdog:
    """Watches one loop; `seconds` without a turn end the process."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tick = min(1.0, seconds / 10)
        self._turned = threading.Event()
        self._stopped = threading.Event()

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch the running loop until the block ends."""
        turning = asyncio.create_task(self._turn(), name="watchdog")
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            turning.cancel()
            await asyncio.gather(turning, return_exceptions=True)
            thread.join(2 * self._tick)
            faulthandler.cancel_dump_traceback_later()

    async def _turn(self) -> None:
        while True:
            self._turned.set()
            await asyncio.sleep(self._tick)

    def _watch(self) -> None:
        stuck, before = 0.0, time.monotonic()
        while not self._stopped.wait(self._tick):
            faulthandler.dump_traceback_later(2 * self._seconds + 5, exit=True, file=sys.__stderr__ or 2)
            now = time.monotonic()
            stuck += min(now - before, 2 * self._tick)
            before = now
            if self._turned.is_set():
                self._turned.clear()
                stuck = 0.0
            elif stuck >= self._seconds:
                self._end(stuck)

    def _end(self, stuck: float) -> None:
        # In a thread of its own: the loop may be stuck in writing to the very pipe that this goes to.
        words = threading.Thread(target=self._last_words, args=(stuck,), daemon=True)
        words.start()
        words.join(_WORDS_SECONDS)
        os._exit(WEDGED_EXIT_CODE)

    def _last_words(self, stuck: float) -> None:
        faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        logger.bind(seconds=round(stuck, 1), exit_code=WEDGED_EXIT_CODE).critical(
            "the event loop is stuck: the worker ends; its jobs are rescued when their leases end"
        )
