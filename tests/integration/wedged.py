"""A process whose event loop is watched, and then gets stuck in the way that its first argument names."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from uuid import uuid4

from worker import telemetry
from worker.queue.watchdog import Watchdog


async def main(way: str, seconds: float) -> None:
    telemetry.configure("INFO", uuid4())
    async with Watchdog(seconds).watching():
        await asyncio.sleep(3 * seconds)
        print("turning", flush=True)
        match way:
            case "asleep":
                time.sleep(600)  # noqa: ASYNC251 - the fault that is tested
            case "holding":
                re.match(r"(a+)+$", "a" * 60 + "b")  # never gives the interpreter's lock back
            case "full pipe":
                while True:
                    os.write(1, b"x" * 65536)
            case "turning":
                await asyncio.sleep(600)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
