"""A worker like any other, but one document kills it and another blocks its loop.

python -m tests.integration.killing_worker worker
"""

from __future__ import annotations

import os
import signal
import time

from worker.__main__ import main
from worker.model import Source
from worker.pipeline.parse import local

POISON = b"Whoever parses this is killed."
STUCK = b"Whoever parses this hangs."


class KillingParser(local.LocalParser):
    """Kills its own process, with signal 9, or hangs, where the bytes say so; parses everything else."""

    async def submit(self, source: Source) -> str:
        if POISON in source.path.read_bytes():
            os.kill(os.getpid(), signal.SIGKILL)
        if STUCK in source.path.read_bytes():
            time.sleep(600)  # noqa: ASYNC251 - the fault that is tested
        return await super().submit(source)


if __name__ == "__main__":
    local.LocalParser = KillingParser  # type: ignore[misc]
    main()
