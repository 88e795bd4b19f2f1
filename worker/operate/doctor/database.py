"""The database: who is let in, what server it is, and whether it can tell the worker of new jobs."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from urllib.parse import urlsplit

import asyncpg

from worker.db.connect import connect_options
from worker.errors import Misconfigured
from worker.operate.doctor.check import Check, Problem
from worker.operate.doctor.examination import Examination, reason
from worker.operate.doctor.network import target

POOLED = 4
"""Connections for jobs in a worker's pool, as the composition root has it; a test compares the two."""

_OLDEST = 15
_SKEW_SECONDS = 5
_LISTEN_SECONDS = 2
_TRANSACTION_POOLER_PORT = 6543

PASSWORD = Problem(
    "database_password_refused",
    "The database refuses the user {user} or its password.",
    "Set the password anew (alter role {role} password '…') and write it into DATABASE_URL, percent-encoded.",
)
TENANT = Problem(
    "pooler_tenant_unknown",
    "The pooler does not know the project of the user {user}.",
    "Write the user as <role>.<project ref>, and take the pooler's host from this very project's Connect window.",
)
NAME = Problem(
    "database_name_unknown",
    "There is no database {database} on that server.",
    "Supabase's database is named postgres: let DATABASE_URL end in /postgres.",
)
FULL = Problem(
    "database_full",
    "The database takes no more connections.",
    "Lower SLUICE_SLOTS or the number of workers, use the pooler, or raise the limit of the role or the server.",
)
LOGIN_FAILED = Problem(
    "database_login_failed",
    "Logging in failed with {error}.",
    "See the database's log for the time of this run; the code is explained in Postgres's list of error codes.",
)
TOO_OLD = Problem(
    "server_too_old",
    "The database is Postgres {found}, and Sluice needs {needed} or newer.",
    "Upgrade the project (Infrastructure settings).",
)
READ_ONLY = Problem(
    "server_read_only",
    "The database takes no writes: it is a read replica, or was made read-only because its disk is full.",
    "Let DATABASE_URL name the primary; a full disk is made larger in the dashboard (Database settings).",
)
TRANSACTION_POOLER = Problem(
    "listen_transaction_pooler",
    "{name} leads through a transaction pooler (port 6543): LISTEN is accepted there and nothing ever arrives, so the "
    "worker learns of uploads by Realtime or its timer only.",
    "Set LISTEN_DATABASE_URL to the session pooler (port 5432) or the direct connection of the same database.",
    warning=True,
)
DEAF = Problem(
    "listen_deaf",
    "Through {name} LISTEN is accepted and nothing arrives: a transaction pooler is in between, or it leads to another "
    "database.",
    "Set LISTEN_DATABASE_URL to the session pooler (port 5432) or the direct connection of the same database.",
    warning=True,
)
LISTEN_REFUSED = Problem(
    "listen_refused",
    "The connection of {name}, on which the worker listens, was refused ({error}).",
    "Correct {name}: same database and user as DATABASE_URL, by the session pooler, or direct where IPv6 works.",
    warning=True,
)
SKEWED = Problem(
    "clock_skew",
    "This machine's clock is {seconds:.0f} s {direction} the database's, so tokens seem expired or not yet valid.",
    "Let an NTP service set the clock of this machine.",
)
FEW_CONNECTIONS = Problem(
    "connections_few",
    "The database has too few connections left for a worker: {left}, and with SLUICE_SLOTS={slots} it uses {wanted}.",
    "Lower SLUICE_SLOTS, end what holds connections, use the pooler, or raise the limit.",
    warning=True,
)
NOT_DURABLE = Problem(
    "commits_not_durable",
    "{which} is off for this login, so a crash of the database's machine can lose what was committed.",
    "Switch it on again, unless this database is only for tests.",
    warning=True,
)


async def login(examination: Examination) -> str:
    """Log in as the worker does."""
    found = target(examination)
    options = connect_options(examination.database_url, shared=True) | {"timeout": 8, "command_timeout": 10}
    try:
        examination.connection = await asyncpg.connect(**options, server_settings={"application_name": "sluice doctor"})
    except asyncpg.InvalidCatalogNameError as exc:
        raise NAME.found(database=found.database) from exc
    except asyncpg.InvalidAuthorizationSpecificationError as exc:
        raise PASSWORD.found(user=found.user, role=found.user.partition(".")[0]) from exc
    except asyncpg.TooManyConnectionsError as exc:
        raise FULL.found() from exc
    except asyncpg.PostgresError as exc:
        if "tenant or user not found" in str(exc).lower():  # the pooler has no code for it
            raise TENANT.found(user=found.user) from exc
        raise LOGIN_FAILED.found(error=f"{type(exc).__name__}, SQLSTATE {exc.sqlstate}") from exc
    except (OSError, asyncpg.InterfaceError) as exc:
        raise LOGIN_FAILED.found(error=type(exc).__name__) from exc
    return f"The database lets {found.user} in."


async def server(examination: Examination) -> str:
    """Look at the server's version, and that it takes writes."""
    assert examination.connection is not None
    version = examination.connection.get_server_version()
    if version.major < _OLDEST:
        raise TOO_OLD.found(found=version.major, needed=_OLDEST)
    if (await examination.ask_one("describe_server"))["read_only"]:
        raise READ_ONLY.found()
    return f"Postgres {version.major}.{version.micro}."


async def listen(examination: Examination) -> str:
    """Prove LISTEN as the worker does: hear on one connection what is said on another."""
    settings = examination.settings
    own = settings.listen_database_url
    name, url = ("LISTEN_DATABASE_URL", own) if own is not None else ("DATABASE_URL", settings.database_url)
    try:
        if urlsplit(url.get_secret_value()).port == _TRANSACTION_POOLER_PORT:
            raise TRANSACTION_POOLER.found(name=name)
        connection = await asyncpg.connect(**connect_options(url.get_secret_value(), shared=True) | {"timeout": 4})
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError, Misconfigured) as exc:
        # The system's words alone: the others' may quote the URL.
        error = reason(exc) if isinstance(exc, OSError) else type(exc).__name__
        raise LISTEN_REFUSED.found(name=name, error=error) from exc
    # A channel of our own: workers that listen on theirs are not woken.
    channel, heard = f"sluice_doctor_{secrets.token_hex(8)}", asyncio.Event()
    try:
        await connection.add_listener(channel, lambda *_: heard.set())
        await examination.ask("notify", channel, "")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(heard.wait(), _LISTEN_SECONDS)
    finally:
        connection.terminate()
    if not heard.is_set():
        raise DEAF.found(name=name)
    return f"LISTEN works through {name}."


async def clock(examination: Examination) -> str:
    """Compare the clocks; half of the round trip is taken off."""
    before, began = examination.world.now(), time.monotonic()
    theirs = (await examination.ask_one("describe_server"))["now"].timestamp()
    skew = before + (time.monotonic() - began) / 2 - theirs
    if abs(skew) > _SKEW_SECONDS:
        raise SKEWED.found(seconds=abs(skew), direction="ahead of" if skew > 0 else "behind")
    return f"The clocks differ by {abs(skew):.1f} s."


async def connections(examination: Examination) -> str:
    """Count what is left for a worker."""
    room = await examination.ask_one("connection_room")
    settings = examination.settings
    # The pool as __main__ makes it, and the listener; ours is given back.
    wanted = min(settings.slots, POOLED) + 2 + 1
    left = room["left"] + 1
    if left < wanted:
        raise FEW_CONNECTIONS.found(left=left, slots=settings.slots, wanted=wanted)
    return f"Connections left: {left}; a worker uses {wanted}."


async def durability(examination: Examination) -> str:
    """Look for settings that lose commits."""
    found = await examination.ask_one("describe_server")
    off = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if found[name] == "off"]
    if off:
        raise NOT_DURABLE.found(which=" and ".join(off))
    return "What is committed is on disk."


CHECKS = (
    Check(
        "database_login", "database", "The database lets the worker in", login,
        (PASSWORD, TENANT, NAME, FULL, LOGIN_FAILED), needs=("database_port",), unless=("database_tls",), seconds=10,
    ),
    Check(
        "server", "database", "The server is new enough and takes writes", server, (TOO_OLD, READ_ONLY),
        needs=("database_login",),
    ),
    Check(
        "listen", "database", "NOTIFY reaches the worker's listener", listen,
        (TRANSACTION_POOLER, DEAF, LISTEN_REFUSED), needs=("database_login",), seconds=10,
    ),
    Check(
        "clock", "database", "This machine's clock agrees with the database's", clock, (SKEWED,),
        needs=("database_login",),
    ),
    Check(
        "connections", "database", "Enough connections are left for a worker", connections, (FEW_CONNECTIONS,),
        needs=("database_login",),
    ),
    Check(
        "durability", "database", "Commits survive a crash", durability, (NOT_DURABLE,), needs=("database_login",),
    ),
)  # fmt: skip
