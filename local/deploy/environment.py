"""The worker's environment: what Render, or whatever runs it, must be given. Kept in a file, shown with masks."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit, urlunsplit

from dotenv import dotenv_values

from local.deploy.step import Plan
from local.deploy.target import Target

_SECRET = re.compile(r"KEY|SECRET|PASSWORD|TOKEN")
_NOT_SECRET = ("SLUICE_EMBED_MAX_TOKENS", "SLUICE_CHUNK_TOKENS", "SLUICE_EMBED_BATCH_TOKENS",
               "SLUICE_EMBED_TOKENS_PER_MINUTE")  # fmt: skip
# Functions read these, and the worker does not.
_FUNCTIONS_ONLY = ("SLUICE_EMBEDDINGS_URL", "SLUICE_EMBEDDINGS_KEY", "SLUICE_CORS_ORIGINS", "SLUICE_GIT_SHA")
MASK = "********"


def of(target: Target, password: str | None) -> dict[str, str]:
    """Return the variables by name; without a password the database's URL has the mask in its place."""
    found = {
        "DATABASE_URL": target.worker_url(password) if password else masked_url(target.worker_url("unknown")),
        "SUPABASE_URL": target.api_url,
        "SUPABASE_SECRET_KEY": target.secret_key,
    }
    found |= {name: value for name, value in target.given.items() if name not in _FUNCTIONS_ONLY}
    if secrets := found.get("SLUICE_WEBHOOK_SECRET", "").split():
        # The function takes several, so that they can be changed; the worker signs with the first.
        found["SLUICE_WEBHOOK_SECRET"] = secrets[0]
    if secrets and target.api_url.startswith("https://"):
        found.setdefault("SLUICE_WEBHOOK_URL", f"{target.api_url}/functions/v1/parse-webhook")
    return found


def known_password(target: Target) -> str | None:
    """Return the worker's password as it was given, or as an earlier run kept it."""
    if target.password is not None:
        return target.password
    if not target.kept_environment.exists():
        return None
    url = dotenv_values(target.kept_environment, interpolate=False).get("DATABASE_URL") or ""
    password = urlsplit(url).password
    return unquote(password) if password else None


def masked(variables: dict[str, str]) -> dict[str, str]:
    """Return the same with every secret, and every password in a URL, behind a mask."""
    return {
        name: MASK if _SECRET.search(name) and name not in _NOT_SECRET else masked_url(value)
        for name, value in variables.items()
    }


def masked_url(value: str) -> str:
    """Return a URL with a mask for its password; anything else as it is."""
    if "://" not in value or not (parts := urlsplit(value)).password:
        return value
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{MASK}@{parts.netloc.rpartition('@')[2]}"))


def keep(target: Target, password: str) -> None:
    """Write the file, readable by its owner only; in one move, so that no half of it is ever there."""
    target.kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = target.kept_environment.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
        stream.write(_text(target, password))
    fresh.replace(target.kept_environment)


async def plan(target: Target) -> Plan:
    """Say whether the file holds what it should."""
    password = known_password(target)
    if password is None:
        return Plan("Nothing is kept here: the password of the worker is not known yet, or from elsewhere.")
    file = target.kept_environment
    if file.exists() and file.read_text() == _text(target, password):
        return Plan(f"{file} holds it.")
    return Plan("The file is missing, or holds other values.", (f"write {file} (mode 0600)",))


async def apply(target: Target) -> str:
    """Write the file."""
    password = known_password(target)
    if password is None:
        raise AssertionError("planned without a password")
    keep(target, password)
    return f"Wrote {target.kept_environment} (mode 0600)."


def _text(target: Target, password: str) -> str:
    head = (
        f"# The worker's environment for {target.name}. It holds secrets: give it to the worker, and to nobody else.\n"
    )
    return head + "".join(f"{name}={_quoted(value)}\n" for name, value in of(target, password).items())


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w@%+=:,./?&-]*", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
