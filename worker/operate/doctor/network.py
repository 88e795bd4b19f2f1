"""The way to the database: name, address, port, TLS. Nobody logs in yet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from pathlib import Path

from worker.operate.doctor.check import Check, NotSet, Problem
from worker.operate.doctor.examination import Examination
from worker.operate.doctor.target import Target, project_of

_SSL_REQUEST = struct.pack(">II", 8, 80877103)
_GREETING_SECONDS = 1.0
_EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 10, 62, 64
"""OpenSSL's numbers for why a certificate is refused; every other one is about who issued it."""

URL_INVALID = Problem(
    "database_url_invalid",
    "DATABASE_URL cannot be used: {why}.",
    "Copy it anew from the project's dashboard (Connect, session pooler), with the password of ingest_worker.",
)
URL_PLACEHOLDER = Problem(
    "database_url_placeholder",
    "DATABASE_URL still holds the dashboard's placeholder for the password.",
    "Put the password of ingest_worker in its place, with special characters percent-encoded.",
)
USER_WITHOUT_REF = Problem(
    "pooler_user_without_ref",
    "DATABASE_URL leads to Supabase's pooler as the user {user}, without the project's ref, so the pooler cannot tell "
    "whose database is meant.",
    "Write the user as {user}.{ref} in DATABASE_URL.",
)
PLAINTEXT = Problem(
    "tls_disabled",
    "DATABASE_URL says sslmode={mode} for {host}, which lets password and documents travel in plaintext.",
    "Write sslmode=require, or set DATABASE_CA_FILE to the project's certificate, which checks the server too.",
)
HOST_UNKNOWN = Problem(
    "database_host_unknown",
    "No name server knows {host}, the host of DATABASE_URL.",
    "Correct the host; a paused or deleted project loses its name, so look at the dashboard too.",
)
IPV6_ONLY = Problem(
    "database_ipv6_only",
    "{host} has IPv6 addresses only, and this machine has no way to IPv6.",
    "Use the session pooler of the dashboard's Connect window instead: host aws-…-<region>.pooler.supabase.com, port "
    "5432, user {user}; or buy the project's IPv4 add-on.",
)
PORT_CLOSED = Problem(
    "database_port_closed",
    "{host} refuses connections on port {port}, so no database listens there.",
    "Correct the port of DATABASE_URL (5432, or 6543 for the transaction pooler), or start the database.",
)
NO_ANSWER = Problem(
    "database_no_answer",
    "{host} does not answer on port {port} ({why}).",
    "Open the port in firewalls and in the project's network restrictions for this machine, or correct the host.",
)
NOT_POSTGRES = Problem(
    "not_postgres",
    "What answers at {host}, port {port}, is not Postgres.",
    "DATABASE_URL must name the database, not the API or a web server: take it from the dashboard's Connect window.",
)
TLS_NOT_OFFERED = Problem(
    "tls_not_offered",
    "The database at {host} does not offer TLS, and the worker sends no password in plaintext.",
    "Switch TLS on at the server or its pooler; only a database on this machine may go without.",
)
TLS_UNVERIFIED = Problem(
    "tls_unverified",
    "The connection to {host} is encrypted, but nothing proves that the server is the right one.",
    "Download the project's certificate (Database settings, SSL) and set DATABASE_CA_FILE to its path.",
    warning=True,
)
CA_MISSING = Problem(
    "tls_ca_missing",
    "The server's certificate is to be verified, but the file of its authority is missing or holds no certificate.",
    "Set DATABASE_CA_FILE to the project's certificate (Database settings, SSL) in PEM.",
)
CA_WRONG = Problem(
    "tls_ca_wrong",
    "The certificate of {host} was not issued by the authority in DATABASE_CA_FILE.",
    "Download the certificate of this very project anew; if it is the right one, somebody is in between.",
)
CERTIFICATE_EXPIRED = Problem(
    "tls_certificate_expired",
    "The certificate of {host} has expired, or this machine's clock is wrong.",
    "Look at the clock first, then renew the server's certificate.",
)
WRONG_NAME = Problem(
    "tls_wrong_name",
    "The certificate of the server at {host} is for another name.",
    "Use the host name that the certificate is made for; an address or an alias does not do.",
)
TLS_FAILED = Problem(
    "tls_failed",
    "The TLS handshake with {host} failed ({why}).",
    "See what stands between this machine and the database: a proxy that speaks old TLS, or none at all.",
)


def target(examination: Examination) -> Target:
    """Return where DATABASE_URL leads; call it when database_url was well."""
    return Target.of(examination.database_url)


async def url(examination: Examination) -> str:
    """Read DATABASE_URL, and notice what can be told without asking anybody."""
    given = examination.database_url
    if not given:
        raise NotSet("DATABASE_URL is not set.")
    if "[YOUR-PASSWORD]" in given or "[YOUR_PASSWORD]" in given:
        raise URL_PLACEHOLDER.found()
    try:
        found = Target.of(given)
    except ValueError as exc:
        raise URL_INVALID.found(why=exc) from exc
    if found.pooled and "." not in found.user:
        raise USER_WITHOUT_REF.found(user=found.user, ref=project_of(examination.api_url) or "<project ref>")
    if found.sslmode in ("disable", "allow", "prefer") and not found.loopback:
        raise PLAINTEXT.found(mode=found.sslmode, host=found.host)
    return f"DATABASE_URL leads to {found.host}, port {found.port}, as {found.user}."


async def dns(examination: Examination) -> str:
    """Resolve the host, and see whether this machine can reach any of its addresses."""
    found = target(examination)
    try:
        addresses = await examination.world.resolve(found.host, found.port)
    except OSError as exc:
        raise HOST_UNKNOWN.found(host=found.host) from exc
    if all(family == socket.AF_INET6 for family, _ in addresses) and not (
        found.loopback or examination.world.routes_ipv6()
    ):
        raise IPV6_ONLY.found(host=found.host, user=f"{found.user}.{found.project or '<project ref>'}")
    return f"{found.host} has {len(addresses)} address{'es' if len(addresses) > 1 else ''}."


async def port(examination: Examination) -> str:
    """Connect, and ask for TLS as every client of Postgres does: nothing else answers that."""
    found = target(examination)
    try:
        async with asyncio.timeout(4 * _GREETING_SECONDS), _connected(found) as (reader, writer):
            writer.write(_SSL_REQUEST)
            answer = await _first_byte(reader)
            if answer is None:
                # What speaks HTTP waits for the end of a head, and then complains.
                writer.write(b"\r\n\r\n")
                answer = await _first_byte(reader)
    except ConnectionRefusedError as exc:
        raise PORT_CLOSED.found(host=found.host, port=found.port) from exc
    except (OSError, TimeoutError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else "nothing came back"
        raise NO_ANSWER.found(host=found.host, port=found.port, why=why) from exc
    if answer is None:
        why = "it takes the connection and says nothing"
        raise NO_ANSWER.found(host=found.host, port=found.port, why=why)
    if answer not in (b"S", b"N"):
        raise NOT_POSTGRES.found(host=found.host, port=found.port)
    examination.offers_tls = answer == b"S"
    return f"Postgres answers at {found.host}, port {found.port}."


async def tls(examination: Examination) -> str:
    """Shake hands as the worker will, and say what it proves."""
    found = target(examination)
    verified = found.sslmode in ("verify-full", "verify-ca")
    if found.loopback and not verified and found.sslmode != "require":
        return "Plaintext, which never leaves this machine."
    context = _context(found, verified)
    if not examination.offers_tls:
        raise TLS_NOT_OFFERED.found(host=found.host)
    try:
        async with _connected(found) as (reader, writer):
            writer.write(_SSL_REQUEST)
            await reader.readexactly(1)
            # Not the writer's own start_tls, which leaves it broken when the server hangs up during the handshake.
            loop, plain = asyncio.get_running_loop(), writer.transport
            encrypted = await loop.start_tls(plain, plain.get_protocol(), context, server_hostname=found.host)
            if encrypted is None:
                raise ConnectionResetError
            version = encrypted.get_extra_info("ssl_object").version()
            encrypted.abort()
    except ssl.SSLCertVerificationError as exc:
        if exc.verify_code == _EXPIRED:
            raise CERTIFICATE_EXPIRED.found(host=found.host) from exc
        if exc.verify_code in (_WRONG_NAME, _WRONG_ADDRESS):
            raise WRONG_NAME.found(host=found.host) from exc
        raise CA_WRONG.found(host=found.host) from exc
    except (OSError, asyncio.IncompleteReadError) as exc:
        why = (exc.reason if isinstance(exc, ssl.SSLError) else None) or type(exc).__name__
        raise TLS_FAILED.found(host=found.host, why=why) from exc
    if not verified and not found.loopback:
        raise TLS_UNVERIFIED.found(host=found.host)
    return f"{version}, and the server has {'proven its name' if verified else 'not proven its name'}."


async def _first_byte(reader: asyncio.StreamReader) -> bytes | None:
    """Return what comes first, nothing when the connection ends, None when nothing comes in time."""
    try:
        async with asyncio.timeout(_GREETING_SECONDS):
            return await reader.read(1)
    except TimeoutError:
        return None
    except ConnectionError:
        return b""


def _context(found: Target, verified: bool) -> ssl.SSLContext:
    if not verified:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context
    if found.ca_file is None or not Path(found.ca_file).is_file():
        raise CA_MISSING.found()
    try:
        context = ssl.create_default_context(cafile=found.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise CA_MISSING.found() from exc
    context.check_hostname = found.sslmode == "verify-full"
    return context


@contextlib.asynccontextmanager
async def _connected(found: Target) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(found.host, found.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


CHECKS = (
    Check(
        "database_url", "network", "DATABASE_URL can be used as it is written", url,
        (URL_INVALID, URL_PLACEHOLDER, USER_WITHOUT_REF, PLAINTEXT),
    ),
    Check(
        "database_dns", "network", "The database's host has an address that this machine can reach", dns,
        (HOST_UNKNOWN, IPV6_ONLY), needs=("database_url",),
    ),
    Check(
        "database_port", "network", "Postgres answers at the host and port", port,
        (PORT_CLOSED, NO_ANSWER, NOT_POSTGRES), needs=("database_dns",),
    ),
    Check(
        "database_tls", "network", "The connection is encrypted, and the server proves its name", tls,
        (TLS_NOT_OFFERED, TLS_UNVERIFIED, CA_MISSING, CA_WRONG, CERTIFICATE_EXPIRED, WRONG_NAME, TLS_FAILED),
        needs=("database_port",),
    ),
)  # fmt: skip
