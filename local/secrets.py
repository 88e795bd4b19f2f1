"""The passwords and keys of one local stack: generated once, kept beside its data, readable by its owner only."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from local.postgres import SUPERUSER
from local.shape import LOGIN_ROLES

WORKER_ROLE = "ingest_worker"


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """What logs in, signs and calls; printing one shows nothing of it."""

    passwords: dict[str, str]
    jwt_secret: str
    publishable_key: str
    secret_key: str

    @classmethod
    def generate(cls) -> Secrets:
        """Make new ones."""
        roles = (SUPERUSER, *LOGIN_ROLES, WORKER_ROLE)
        return cls(
            passwords={role: secrets.token_urlsafe(24) for role in roles},
            jwt_secret=secrets.token_urlsafe(48),
            publishable_key=f"sb_publishable_{secrets.token_urlsafe(24)}",
            secret_key=f"sb_secret_{secrets.token_urlsafe(24)}",
        )

    @classmethod
    def kept_in(cls, file: Path) -> Secrets:
        """Read them from `file`, or make it."""
        if file.exists():
            return cls(**json.loads(file.read_text()))
        made = cls.generate()
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            json.dump(asdict(made), stream, indent=2)
        return made
