"""`sluice doctor`, layers settings and network: each set-up breaks one thing, and that is what is found."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from local.postgres import free_port
from tests.integration.installation import REF, Breaking, Installation, SetUp, found_as, ids, setting
from tests.tls_line import Authority, database_line


def url(change: Callable[[Installation], str]) -> Breaking:
    """Set DATABASE_URL to what `change` makes of it."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        installation.environment["DATABASE_URL"] = change(installation)
        yield

    return broken


def resolving(host: str, *addresses: tuple[int, str]) -> Breaking:
    """Let DATABASE_URL lead to a host that resolves to these addresses, or that nobody knows."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        async def resolve(_host: str, _port: int) -> Any:
            if not addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return list(addresses)

        installation.environment["DATABASE_URL"] = installation.at(host, port=5432)
        installation.world = replace(installation.world, resolve=resolve, routes_ipv6=lambda: False)
        yield

    return broken


@contextlib.asynccontextmanager
async def no_settings(installation: Installation) -> AsyncIterator[None]:
    installation.environment = {
        "SLUICE_SLOTS": "many",
        "SLUICE_MODEL_DIR": installation.environment["SLUICE_MODEL_DIR"],
    }
    yield


@contextlib.asynccontextmanager
async def silent(installation: Installation) -> AsyncIterator[None]:
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _reader, writer: writers.append(writer), "127.0.0.1", 0)
    installation.environment["DATABASE_URL"] = installation.at(port=server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


def tls(
    made_for: str, *, trusted: str = "authority", days: int = 1, host: str = "127.0.0.1", verify: bool = True
) -> Breaking:
    """Put TLS before the database, with a certificate for `made_for`."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        authority = Authority.make(installation.directory)
        if verify:
            file = authority.file if trusted == "authority" else Authority.make(installation.directory, trusted).file
            installation.environment["DATABASE_CA_FILE"] = str(file)
        async with database_line(installation.url, host=host, tls=authority.server(made_for, days=days)) as line:
            installation.environment["DATABASE_URL"] = line
            yield

    return broken


@contextlib.asynccontextmanager
async def hanging_up(installation: Installation) -> AsyncIterator[None]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readexactly(8)
            writer.write(b"S")
            await reader.readexactly(1)  # the handshake begins
        writer.transport.abort()

    server = await asyncio.start_server(accept, "127.0.0.2", 0)
    installation.environment["DATABASE_URL"] = installation.at("127.0.0.2", port=server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()


@contextlib.asynccontextmanager
async def without_tls(installation: Installation) -> AsyncIterator[None]:
    # Not one of the names of loopback, so that it counts as another machine.
    async with database_line(installation.url, host="127.0.0.2") as line:
        installation.environment["DATABASE_URL"] = line
        yield


SETTINGS: dict[str, SetUp] = {
    "settings that are missing and one that is wrong": (
        no_settings, {"settings": "settings_invalid"}, "SLUICE_SLOTS: Input should be a valid integer"),
    "a misspelt setting": (setting(SLUICE_SLOT="8"), {"setting_names": "setting_misspelt"}, "to SLUICE_SLOTS"),
    "a lease that is renewed too late": (
        setting(SLUICE_RENEW_SECONDS="50"), {"settings_agree": "lease_renewed_too_late"}, "Leases last 60 s"),
    "a parser without its key": (
        setting(SLUICE_PARSER="llama-cloud"),
        {"settings_agree": "parser_key_missing", "parser_package": "parser_not_installed"},
        "LLAMA_CLOUD_API_KEY is not set"),
    "a CA file that is not there": (
        setting(DATABASE_CA_FILE="/nowhere/prod-ca.crt"), {"settings": "settings_invalid"}, "DATABASE_CA_FILE"),
}  # fmt: skip
NETWORK: dict[str, SetUp] = {
    "a URL with the dashboard's placeholder": (
        url(lambda it: f"postgresql://postgres:[YOUR-PASSWORD]@db.{REF}.supabase.co:5432/postgres"),
        {"database_url": "database_url_placeholder"}, "placeholder for the password"),
    "the project's address as DATABASE_URL": (
        url(lambda it: it.environment["SUPABASE_URL"]), {"database_url": "database_url_invalid"},
        "it must begin with postgresql://"),
    "a pooler user without the project's ref": (
        url(lambda it: it.at("aws-0-eu-central-1.pooler.supabase.com", port=5432)),
        {"database_url": "pooler_user_without_ref"}, "Write the user as ingest_worker.<project ref>"),
    "an IPv6-only direct host from an IPv4 network": (
        resolving(f"db.{REF}.supabase.co", (socket.AF_INET6, "2a05:d014:1c06::1")),
        {"database_dns": "database_ipv6_only"}, f"pooler.supabase.com, port 5432, user ingest_worker.{REF}"),
    "a host that nobody knows": (
        resolving(f"db.{REF}.supabase.co"), {"database_dns": "database_host_unknown"}, "No name server knows"),
    "a closed port": (
        url(lambda it: it.at(port=free_port())), {"database_port": "database_port_closed"}, "refuses connections"),
    "a port at which the API answers": (
        url(lambda it: it.at(port=it.stack.server.port)), {"database_port": "not_postgres"}, "is not Postgres"),
    "a port that takes connections and says nothing": (
        silent, {"database_port": "database_no_answer"}, "says nothing"),
    "plaintext to another machine": (
        url(lambda it: it.at("127.0.0.2", query="sslmode=disable")), {"database_url": "tls_disabled"}, "plaintext"),
    "a database of another machine without TLS": (
        without_tls, {"database_tls": "tls_not_offered"}, "does not offer TLS"),
    "a server that hangs up in the handshake": (hanging_up, {"database_tls": "tls_failed"}, "handshake with 127.0.0.2"),
    "TLS without an authority": (
        tls("127.0.0.2", host="127.0.0.2", verify=False), {"database_tls": "tls_unverified"}, "DATABASE_CA_FILE"),
    "verify-full without a file": (
        url(lambda it: it.at(query="sslmode=verify-full")), {"database_tls": "tls_ca_missing"}, "DATABASE_CA_FILE"),
    "the certificate of another authority": (
        tls("127.0.0.1", trusted="another"), {"database_tls": "tls_ca_wrong"}, "was not issued by the authority"),
    "an expired certificate": (
        tls("127.0.0.1", days=-1), {"database_tls": "tls_certificate_expired"}, "has expired"),
    "a certificate for another name": (
        tls("db.example.org"), {"database_tls": "tls_wrong_name"}, "is for another name"),
}  # fmt: skip


@pytest.mark.parametrize("set_up", ids(SETTINGS | NETWORK))
async def test_the_doctor_finds_what_is_broken_and_nothing_else(installation: Installation, set_up: SetUp) -> None:
    await found_as(installation, set_up)


async def test_a_server_that_proves_its_name_is_well_and_the_worker_connects(installation: Installation) -> None:
    await found_as(installation, (tls("127.0.0.1"), {}, ""))
