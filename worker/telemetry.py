"""Logging: one JSON line a transition on standard output.

A line carries ids, codes, counts and seconds; never document text, vectors, keys or signed URLs.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

from loguru import logger

from worker.model import Claim

if TYPE_CHECKING:
    from loguru import Message


def configure(level: str, worker_id: UUID) -> None:
    """Send every log line, the libraries' warnings included, to standard output as one JSON object."""
    logger.remove()
    logger.configure(extra={"worker": str(worker_id)})
    # Neither backtrace nor diagnose: both print local variables, which hold text and keys.
    logger.add(_write, level=level.upper(), format="{message}", backtrace=False, diagnose=False)
    logging.basicConfig(handlers=[_Intercept()], level=logging.WARNING, force=True)
    # httpx and asyncpg log URLs and statements below warning: signed URLs among them.
    for name in ("httpx", "httpcore", "asyncpg"):
        logging.getLogger(name).setLevel(logging.ERROR)


def about(claim: Claim) -> dict[str, Any]:
    """Return the fields that say which job a line is about."""
    return {
        "job": claim.job_id,
        "document": str(claim.document_id),
        "tenant": str(claim.tenant_id),
        "generation": claim.generation,
        "claim": claim.number,
        "attempt": claim.attempt,
    }


def _write(message: Message) -> None:
    record = message.record
    line: dict[str, Any] = {
        "at": record["time"].astimezone().isoformat(timespec="milliseconds"),
        "level": record["level"].name.lower(),
        "event": record["message"],
        **record["extra"],
    }
    exception = record["exception"]
    if exception is not None and exception.type is not None:
        # The traceback's places, not its values: messages of foreign exceptions may quote the document.
        frames, traceback = [], exception.traceback
        while traceback is not None:
            code = traceback.tb_frame.f_code
            frames.append(f"{code.co_filename.rsplit('site-packages/', 1)[-1]}:{traceback.tb_lineno} {code.co_name}")
            traceback = traceback.tb_next
        line["exception"] = {"type": exception.type.__name__, "frames": frames[-30:]}
    sys.stdout.write(json.dumps(line, default=str) + "\n")
    sys.stdout.flush()


class _Intercept(logging.Handler):
    """Passes the standard library's records on."""

    def emit(self, record: logging.LogRecord) -> None:
        level: str | int
        try:
            level = logger.level(record.levelname).name
        except ValueError:
            level = record.levelno
        logger.opt(exception=record.exc_info).bind(logger=record.name).log(level, record.getMessage())
