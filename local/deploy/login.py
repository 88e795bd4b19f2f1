"""The worker's login: its password is set by SQL over the owner's connection, as a SCRAM verifier.

The server never sees the password itself, so no statement log can hold it. Whether a role has a password is told to
superusers only; a note on the role says so to everybody else.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
from datetime import UTC, datetime

from local.deploy import environment
from local.deploy.connection import LoginRefused, connected
from local.deploy.step import Plan
from local.deploy.target import Target
from local.errors import StackError
from local.secrets import WORKER_ROLE

_ITERATIONS = 4096  # what Postgres itself takes; the password has 192 bits, and needs no stretching
_NOTE = "Password set by scripts/deploy at "
# A pooler may know the old password for a moment.
_WAITS = (0.0, 1.0, 3.0, 6.0)


async def plan(target: Target) -> Plan:
    """Say whether the password has to be set; tries to log in where one is known."""
    async with connected(target) as connection:
        role = await connection.fetchrow(
            "select rolcanlogin, shobj_description(oid, 'pg_authid') as note from pg_roles where rolname = $1",
            WORKER_ROLE,
        )
    there = f"and keep it in {target.kept_environment}"
    if role is None:
        return Plan(f"The migrations make {WORKER_ROLE}.", (f"set the password of {WORKER_ROLE}, {there}",))
    if target.rotate:
        return Plan("A new password was asked for.", (f"set a new password for {WORKER_ROLE}, {there}",))
    password = environment.known_password(target)
    if password is not None:
        if await _logs_in(target, password):
            return Plan(f"{WORKER_ROLE} logs in with the password that is known here.")
        return Plan(f"{WORKER_ROLE} does not log in.", (f"set the password of {WORKER_ROLE} to the one known here",))
    note = role["note"] or ""
    if note.startswith(_NOTE):
        return Plan(
            f"{WORKER_ROLE} got its password at {note.removeprefix(_NOTE)}, from somewhere else.",
            warnings=(
                "That password is not known here. Give it as SLUICE_WORKER_PASSWORD, or make a new one with "
                "--rotate-password, which locks running workers out until they have it.",
            ),
        )
    return Plan(f"{WORKER_ROLE} has no password yet.", (f"set the password of {WORKER_ROLE}, {there}",))


async def apply(target: Target) -> str:
    """Set the given password, or make one; it is kept before it is set, so that it is never lost."""
    chosen = target.password
    if chosen is None:
        chosen = None if target.rotate else environment.known_password(target)
    made = chosen is None
    password = chosen or secrets.token_urlsafe(24)
    environment.keep(target, password)
    async with connected(target) as connection:
        # Utility statements take no parameters, so the server quotes.
        for statement, value in (
            ("alter role %I with login password %L", verifier(password)),
            ("comment on role %I is %L", _NOTE + datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")),
        ):
            await connection.execute(
                await connection.fetchval("select format($1::text, $2::text, $3::text)", statement, WORKER_ROLE, value)
            )
    for wait in _WAITS:
        await asyncio.sleep(wait)
        if await _logs_in(target, password):
            which = "a new one, kept in " + str(target.kept_environment) if made else "the one known here"
            return f"Set the password of {WORKER_ROLE}: {which}. It logs in."
    raise StackError(
        f"The password of {WORKER_ROLE} was set, but {target.host} still refuses it. A pooler may take a minute: run "
        "this again."
    )


def verifier(password: str, salt: bytes | None = None) -> str:
    """Return what Postgres keeps of an ASCII password (RFC 5803), with a random salt unless one is given."""
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}"


async def _logs_in(target: Target, password: str) -> bool:
    try:
        async with connected(target, target.worker_url(password)):
            return True
    except LoginRefused:
        return False
