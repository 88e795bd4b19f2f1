"""The embedded Supabase: what it serves to supabase-js, what it must not change, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from local.deno import REPOSITORY
from local.errors import StackError
from local.stack import Stack
from tests import deno_script

ACCOUNT = Path(__file__).parent / "account.ts"

# Everything in the catalogue that says who may do what.
ACCESS = """
    select 'relation', c.oid::regclass::text, c.relacl::text, c.relowner::regrole::text || c.relrowsecurity
      from pg_class c
    union all select 'column', a.attrelid::regclass || '.' || a.attname, a.attacl::text, ''
      from pg_attribute a where a.attacl is not null
    union all select 'schema', nspname, nspacl::text, nspowner::regrole::text
      from pg_namespace where nspname !~ '^pg_(toast_)?temp'
    union all select 'function', p.oid::regprocedure::text, p.proacl::text, p.proowner::regrole::text || p.prosecdef
      from pg_proc p
    union all select 'default', concat_ws(' ', defaclrole::regrole, defaclnamespace, defaclobjtype), defaclacl::text, ''
      from pg_default_acl
    union all select 'member', roleid::regrole || ' of ' || member::regrole,
        admin_option::text || inherit_option || set_option, grantor::regrole::text
      from pg_auth_members
    union all select 'role', rolname, rolsuper::text || rolcreaterole || rolbypassrls || rolcanlogin, ''
      from pg_roles
    union all select 'policy', polrelid::regclass || '.' || polname, polroles::regrole[]::text, polcmd::text
      from pg_policy
    union all select 'database', datname, datacl::text, datdba::regrole::text
      from pg_database
    order by 1, 2, 3, 4
"""


async def _access(stack: Stack) -> list[tuple[Any, ...]]:
    admin = await asyncpg.connect(stack.admin_url)
    try:
        return [tuple(row) for row in await admin.fetch(ACCESS)]
    finally:
        await admin.close()


async def test_a_person_signs_up_and_in_without_confirmation_and_sees_only_what_is_theirs(stack: Stack) -> None:
    email = f"{uuid4()}@example.com"

    seen = await deno_script.run(ACCOUNT, stack, EMAIL=email)

    assert seen["signUp"] == {"error": None, "session": True}
    assert seen["signIn"] is None
    assert seen["wrong"] == 400
    assert seen["me"] == email
    assert seen["refreshed"]
    assert seen["tenants"] == [seen["id"]]
    assert seen["asAnonymous"] == 0
    assert seen["documents"] == {"error": None, "count": 0}
    assert seen["asServer"] is None
    assert seen["inserted"] == "42501"
    assert seen["internal"] == seen["storageRows"] == "PGRST106"
    assert seen["noFunction"] == 404


async def test_using_auth_and_rest_changes_no_right_in_the_database(stack: Stack) -> None:
    before = await _access(stack)

    await deno_script.run(ACCOUNT, stack, EMAIL=f"{uuid4()}@example.com")

    assert await _access(stack) == before
    assert len(before) > 1000


async def test_the_api_wants_a_key_and_refuses_a_forged_token(stack: Stack) -> None:
    async with httpx.AsyncClient(base_url=stack.api_url) as client:
        keyless = await client.get("/rest/v1/documents")
        wrong = await client.get("/rest/v1/documents", headers={"apikey": "sb_secret_guess"})
        # {"alg":"none"} . {"role":"service_role"}
        token = "eyJhbGciOiJub25lIn0.eyJyb2xlIjoic2VydmljZV9yb2xlIn0."
        forged = await client.get(
            "/rest/v1/documents", headers={"apikey": stack.publishable_key, "authorization": f"Bearer {token}"}
        )
        nowhere = await client.get("/elsewhere")

    assert [keyless.status_code, wrong.status_code, forged.status_code, nowhere.status_code] == [401, 401, 401, 404]


@pytest.mark.parametrize("path", ["/rest/v1/documents", "/auth/v1/signup", "/storage/v1/object/documents/x"])
async def test_a_page_of_another_origin_may_call_the_api(stack: Stack, path: str) -> None:
    asked = {
        "origin": "http://localhost:3000",
        "access-control-request-method": "POST",
        "access-control-request-headers": "apikey,authorization,content-type,x-client-info",
    }
    async with httpx.AsyncClient(base_url=stack.api_url) as client:
        answer = await client.options(path, headers=asked)

    assert answer.status_code in (200, 204)
    assert answer.headers["access-control-allow-origin"] in ("*", "http://localhost:3000")
    assert "apikey" in answer.headers["access-control-allow-headers"].lower()


async def test_it_listens_on_loopback_only_and_shows_no_secret_in_its_arguments(stack: Stack) -> None:
    pids = [stack.server.pid, stack.cluster.pid]
    processes = [psutil.Process(pid) for pid in pids]

    listening = {c.laddr.ip for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    arguments = " ".join(argument for p in processes for argument in p.cmdline())

    assert listening == {"127.0.0.1"}
    secrets = [stack.jwt_secret, stack.secret_key, stack.publishable_key, *stack.secrets.passwords.values()]
    assert not [secret for secret in secrets if secret in arguments]
    assert (stack.directory / "secrets.json").stat().st_mode & 0o077 == 0


async def test_a_second_start_finds_the_data_and_keys_of_the_first(temporary_directory: Path) -> None:
    directory = temporary_directory / "twice"
    async with Stack(directory, durable=False) as first:
        email = f"{uuid4()}@example.com"
        made = await deno_script.run(ACCOUNT, first, EMAIL=email)
        key = first.secret_key

    async with Stack(directory, durable=False) as second:
        found = await deno_script.run(ACCOUNT, second, EMAIL=email, EXISTING="1")

        assert (found["id"], second.secret_key) == (made["id"], key)


async def test_a_first_start_that_was_interrupted_is_done_anew(temporary_directory: Path) -> None:
    directory = temporary_directory / "interrupted"
    (directory / "postgres" / "data").mkdir(parents=True)
    (directory / "postgres" / "data" / "PG_VERSION").write_text("18\n")
    (directory / "shape").write_text("unfinished")

    async with Stack(directory, durable=False) as stack, httpx.AsyncClient() as client:
        assert (await client.get(f"{stack.api_url}/health")).json() == {"status": "ok"}


async def test_data_of_another_shape_is_refused_with_what_to_remove(temporary_directory: Path) -> None:
    directory = temporary_directory / "foreign"
    (directory / "postgres" / "data").mkdir(parents=True)
    (directory / "postgres" / "data" / "PG_VERSION").write_text("18\n")
    (directory / "shape").write_text("0123456789ab")

    with pytest.raises(StackError, match=r"another version of the local stack.*python -m local reset"):
        await Stack(directory).start()


async def test_data_of_another_major_version_is_refused_with_what_to_remove(
    stack: Stack, temporary_directory: Path
) -> None:
    directory = temporary_directory / "older"
    (directory / "postgres" / "data").mkdir(parents=True)
    (directory / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    (directory / "shape").write_text((stack.directory / "shape").read_text())

    with pytest.raises(StackError, match=r"Postgres 16, and this is Postgres 18.*remove"):
        await Stack(directory).start()


async def test_edge_functions_are_served_as_they_are_deployed(temporary_directory: Path) -> None:
    project = temporary_directory / "project"
    (project / "supabase" / "migrations").mkdir(parents=True)
    (project / "supabase" / "config.toml").write_text('project_id = "scratch"\n')
    for name, code in {
        "greet": 'import { word } from "../_shared/word.ts"; Deno.serve((r) => new Response(word + r.method));',
        "fail": 'Deno.serve({ port: 1 }, () => { throw new Error("a secret"); });',
        "_shared": "",
    }.items():
        (project / "supabase" / "functions" / name).mkdir(parents=True)
        (project / "supabase" / "functions" / name / "index.ts").write_text(code)
    (project / "supabase" / "functions" / "_shared" / "word.ts").write_text('export const word = "hello ";')

    async with (
        Stack(temporary_directory / "functions", durable=False, project=project) as up,
        httpx.AsyncClient() as client,
    ):
        answers = [await client.post(f"{up.api_url}/functions/v1/{name}") for name in ("greet", "fail", "_shared")]

    assert [answer.status_code for answer in answers] == [200, 500, 404]
    assert answers[0].text == "hello POST"
    assert "secret" not in answers[1].text


class Up:
    """`python -m local up` in a process of its own, and the processes that it started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process = subprocess.Popen(
            [sys.executable, "-m", "local", "up", "--port", "0", "--json", "--directory", str(directory)],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.facts = json.loads(line)
        self.server = psutil.Process(self.process.pid).children()
        self.postgres = psutil.Process(int((directory / "postgres" / "data" / "postmaster.pid").read_text().split()[0]))

    def left(self, *, seconds: float = 15) -> list[psutil.Process]:
        """Return which of its processes still run once they have had time to end."""
        return list(psutil.wait_procs([*self.server, self.postgres], timeout=seconds)[1])


@pytest.fixture
def up(temporary_directory: Path) -> Iterator[Up]:
    made = Up(temporary_directory / f"up-{uuid4()}")
    yield made
    with contextlib.suppress(ProcessLookupError):
        made.process.kill()
    made.process.communicate()
    _local("down", made.directory)


def _local(verb: str, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "local", verb, "--directory", str(directory), *more],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(up: Up, number: signal.Signals) -> None:
    assert len(up.server) == 1

    os.kill(up.process.pid, number)

    assert up.process.wait(30) == 0
    assert up.left() == []


def test_the_directory_has_one_holder_and_down_stops_it(up: Up) -> None:
    second = _local("up", up.directory, "--port", "0")
    held = _local("status", up.directory, "--json")
    refused = _local("reset", up.directory, "--yes")
    down = _local("down", up.directory)
    after = _local("status", up.directory)

    assert second.returncode == 1
    assert f"in use by process {up.process.pid}" in second.stderr
    said = json.loads(held.stdout)
    assert (said["running"], said["pid"], said["api_url"]) == (True, up.process.pid, up.facts["api_url"])
    assert refused.returncode == 1
    assert (down.returncode, down.stdout) == (0, "Stopped.\n")
    assert up.left() == []
    assert after.returncode == 3
    assert _local("reset", up.directory, "--yes").returncode == 0
    assert not (up.directory / "postgres").exists()


async def test_after_a_killed_parent_the_server_ends_and_the_next_start_takes_over(up: Up) -> None:
    up.process.kill()
    up.process.wait()

    assert psutil.wait_procs(up.server, timeout=15)[1] == []
    async with Stack(up.directory) as again:
        assert again.cluster.pid != up.postgres.pid
        assert up.left() == []
        async with asyncio.timeout(10), httpx.AsyncClient() as client:
            assert (await client.get(f"{again.api_url}/health")).json() == {"status": "ok"}
