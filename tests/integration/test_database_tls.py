"""The way to the database is encrypted beyond this machine, and proven where DATABASE_CA_FILE is set."""

from __future__ import annotations

from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Database
from tests.tls_line import Authority, database_line
from worker.db.connect import connect_options
from worker.db.pool import Database as Pool
from worker.errors import Misconfigured
from worker.settings import Settings


def settings(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    """Read settings with these variables."""
    for name, value in {"SUPABASE_URL": "http://127.0.0.1", "SUPABASE_SECRET_KEY": "sb_secret_x", **variables}.items():
        monkeypatch.setenv(name, value)
    return Settings()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Whoever issues the database's certificate."""
    return Authority.make(tmp_path)


@pytest.mark.parametrize("sslmode", ["", "?sslmode=require", "?sslmode=disable&application_name=x"])
async def test_a_ca_file_makes_every_connection_prove_its_server(
    database: Database, authority: Authority, monkeypatch: pytest.MonkeyPatch, sslmode: str
) -> None:
    async with database_line(database.url("ingest_worker"), tls=authority.server("127.0.0.1")) as line:
        read = settings(monkeypatch, DATABASE_URL=line + sslmode, DATABASE_CA_FILE=str(authority.file))

        db = await Pool.open(read.database_url.get_secret_value(), size=1)
        assert await db.fetchval("backend_pid") > 0
        await db.close()


async def test_the_listeners_url_is_verified_too(
    database: Database, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database_line(database.url("ingest_worker"), tls=authority.server("db.example.org")) as line:
        read = settings(monkeypatch, DATABASE_URL=line, LISTEN_DATABASE_URL=line, DATABASE_CA_FILE=str(authority.file))

        assert read.listen_database_url is not None
        with pytest.raises(OSError, match="certificate verify failed"):
            await asyncpg.connect(**connect_options(read.listen_database_url.get_secret_value()))


async def test_another_authoritys_certificate_is_told_as_what_it_is(
    database: Database, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority.make(tmp_path, "other")
    async with database_line(database.url("ingest_worker"), tls=other.server("127.0.0.1")) as line:
        read = settings(monkeypatch, DATABASE_URL=line, DATABASE_CA_FILE=str(authority.file))

        with pytest.raises(Misconfigured) as refused:
            await Pool.open(read.database_url.get_secret_value(), size=1)
    assert refused.value.code == "database_tls"


async def test_beyond_this_machine_no_password_goes_in_plaintext(database: Database, authority: Authority) -> None:
    # Not one of the names of loopback, so that it counts as another machine.
    url = database.url("ingest_worker")
    async with database_line(url, host="127.0.0.2") as plain:
        with pytest.raises(Misconfigured) as refused:
            await Pool.open(plain, size=1)  # no sslmode: TLS is required, and there is none
        assert refused.value.code == "database_unreachable"
        for mode in ("disable", "allow", "prefer"):
            with pytest.raises(Misconfigured) as refused:
                await Pool.open(f"{plain}?sslmode={mode}", size=1)
            assert refused.value.code == "database_plaintext"
    async with database_line(url, host="127.0.0.2", tls=authority.server("127.0.0.2")) as encrypted:
        db = await Pool.open(encrypted, size=1)
        await db.close()
