"""What scripts/deploy says of settings, of what a project lets in, and of functions that do not run."""

from __future__ import annotations

import base64
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from local.deno import REPOSITORY
from local.deploy import exposure, functions, hooks
from local.deploy.environment import MASK, masked, of
from local.deploy.target import Target, WrongSettings, hosted, read
from local.errors import StackError
from local.supabase_cli import database
from tests.provider_double import ProviderDouble, Reply

REF, OTHER = "abcdefghijklmnopqrst", "z" * 20
POOLER = "aws-0-eu-central-1.pooler.supabase.com"
GOOD = {
    "SUPABASE_URL": f"https://{REF}.supabase.co",
    "SUPABASE_DB_URL": f"postgresql://postgres.{REF}:p%40ss@{POOLER}:5432/postgres",
    "SUPABASE_SECRET_KEY": "sb_secret_0123456789",
    "SUPABASE_ACCESS_TOKEN": "sbp_0123456789",
}


def _legacy(**claims: str) -> str:
    return f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.x"


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"SUPABASE_URL": f"http://{REF}.supabase.co"}, "SUPABASE_URL must begin with https://"),
        ({"SUPABASE_URL": "https://files.example.com"}, "SUPABASE_PROJECT_REF is not set"),
        ({"SUPABASE_PROJECT_REF": "Sluice"}, "SUPABASE_PROJECT_REF must be the project's 20 lower-case letters"),
        (
            {"SUPABASE_DB_URL": f"postgresql://postgres.{REF}:p@{POOLER}:6543/postgres"},
            "is the transaction pooler (6543)",
        ),
        ({"SUPABASE_DB_URL": f"postgresql://postgres:p@{POOLER}:5432/postgres"}, f"in the user's name, postgres.{REF}"),
        (
            {"SUPABASE_DB_URL": f"postgresql://postgres.{OTHER}:p@{POOLER}:5432/x"},
            f"is project {OTHER}, and SUPABASE_URL",
        ),
        (
            {"SUPABASE_DB_URL": f"postgresql://postgres:p@db.{OTHER}.supabase.co/x"},
            f"is project {OTHER}, and SUPABASE_URL",
        ),
        ({"SUPABASE_DB_URL": f"postgresql://ingest_worker.{REF}:p@{POOLER}:5432/x"}, "migrations belong to postgres"),
        (
            {"SUPABASE_DB_URL": f"postgresql://postgres.{REF}@{POOLER}:5432/x"},
            "must be postgresql://postgres…:PASSWORD@",
        ),
        ({"SUPABASE_SECRET_KEY": "sb_publishable_1"}, "is a publishable key"),
        ({"SUPABASE_SECRET_KEY": _legacy(role="anon", ref=REF)}, "is a publishable key"),
        ({"SUPABASE_SECRET_KEY": _legacy(role="service_role", ref=OTHER)}, f"is a key of project {OTHER}"),
        ({"SLUICE_WORKER_PASSWORD": "too short"}, "SLUICE_WORKER_PASSWORD must be 16 to 128"),
        ({"DATABASE_CA_FILE": "/nowhere/ca.crt"}, "there is no file /nowhere/ca.crt"),
        ({"SLUICE_EMBEDDINGS_KEY": "it's"}, "SLUICE_EMBEDDINGS_KEY must be one line without a single quote"),
    ],
)
def test_a_setting_that_cannot_be_right_is_named(changed: dict[str, str], sentence: str) -> None:
    with pytest.raises(WrongSettings) as raised:
        hosted(GOOD | changed)

    (line,) = str(raised.value).splitlines()
    assert sentence in line
    assert "p%40ss" not in line


def test_good_settings_are_good_also_with_a_legacy_key_and_a_direct_address() -> None:
    assert hosted(GOOD).name == REF
    assert hosted(GOOD | {"SUPABASE_SECRET_KEY": _legacy(role="service_role", ref=REF)}).hosted
    assert hosted(GOOD | {"SUPABASE_DB_URL": f"postgresql://postgres:p@db.{REF}.supabase.co:5432/postgres"}).name == REF


def test_the_workers_address_is_the_owners_with_the_project_behind_the_role() -> None:
    target = hosted(GOOD)

    assert target.worker_url("a/b") == f"postgresql://ingest_worker.{REF}:a%2Fb@{POOLER}:5432/postgres"
    direct = hosted(GOOD | {"SUPABASE_DB_URL": f"postgresql://postgres:p@db.{REF}.supabase.co:5432/postgres"})
    assert direct.worker_url("x") == f"postgresql://ingest_worker:x@db.{REF}.supabase.co:5432/postgres"


def test_the_workers_environment_has_what_it_reads_and_is_masked_where_it_is_secret() -> None:
    besides = {
        "OPENAI_API_KEY": "sk-1",
        "SLUICE_SLOTS": "8",
        "SLUICE_WEBHOOK_SECRET": "0123456789abcdef",
        "PATH": "/bin",
    }

    found = of(hosted(GOOD | besides | {"SLUICE_EMBEDDINGS_KEY": "sk-2"}), "the password")

    assert found == {
        "DATABASE_URL": f"postgresql://ingest_worker.{REF}:the%20password@{POOLER}:5432/postgres",
        "SUPABASE_URL": GOOD["SUPABASE_URL"],
        "SUPABASE_SECRET_KEY": GOOD["SUPABASE_SECRET_KEY"],
        "OPENAI_API_KEY": "sk-1",
        "SLUICE_SLOTS": "8",
        "SLUICE_WEBHOOK_SECRET": "0123456789abcdef",
        "SLUICE_WEBHOOK_URL": f"https://{REF}.supabase.co/functions/v1/parse-webhook",
    }
    assert {name for name, value in masked(found).items() if value == MASK} == {
        "SUPABASE_SECRET_KEY", "OPENAI_API_KEY", "SLUICE_WEBHOOK_SECRET",
    }  # fmt: skip
    assert masked(found)["DATABASE_URL"] == f"postgresql://ingest_worker.{REF}:{MASK}@{POOLER}:5432/postgres"


def test_a_file_of_settings_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_URL", "https://left-over.example.com")
    file = tmp_path / "production.env"
    file.write_text(f"SUPABASE_URL={GOOD['SUPABASE_URL']}\nSLUICE_EMBEDDINGS_KEY='with $dollar'\nOPENAI_API_KEY=\n")

    found = read(file)

    assert found["SUPABASE_URL"] == GOOD["SUPABASE_URL"]
    assert found["SLUICE_EMBEDDINGS_KEY"] == "with $dollar"
    assert "OPENAI_API_KEY" not in found


def test_the_cli_gets_the_password_by_its_environment_and_never_falls_back_to_plaintext() -> None:
    arguments, secrets = database(GOOD["SUPABASE_DB_URL"])
    _, verified = database(GOOD["SUPABASE_DB_URL"], "/etc/ca.crt")
    _, local = database("postgresql://postgres:p@127.0.0.1:5432/postgres")

    assert arguments == ["--remote", f"postgresql://postgres.{REF}@{POOLER}:5432/postgres"]
    assert secrets == {"PGPASSWORD": "p@ss", "PGSSLMODE": "require"}
    assert verified == {"PGPASSWORD": "p@ss", "PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/etc/ca.crt"}
    assert local["PGSSLMODE"] == "disable"


def _target(double: ProviderDouble, **settings: str) -> Target:
    return hosted(GOOD | {"SUPABASE_URL": double.url, "SUPABASE_PROJECT_REF": REF, **settings})


# What PostgREST says of a schema that it does not show, and of a table that it does not know.
_HIDDEN = Reply(406, {"code": "PGRST106", "message": "Invalid schema: x"})
_UNKNOWN = Reply(404, {"code": "PGRST205", "message": "Could not find the table 'x.jobs' in the schema cache"})


@pytest.mark.parametrize(
    ("public", "ingest", "sentence"),
    [
        (_UNKNOWN, _UNKNOWN, "The Data API shows the schema ingest, which is internal"),
        (Reply(200, []), Reply(403, {"code": "42501"}), "The Data API shows the schema ingest, which is internal"),
        (_HIDDEN, _HIDDEN, "The Data API does not show the schema public"),
        (Reply(401, {"message": "Invalid API key"}), _HIDDEN, "does not know SUPABASE_SECRET_KEY"),
        (Reply(200, []), _HIDDEN, None),
    ],
)
async def test_a_schema_is_shown_as_it_should_be_or_the_sentence_says_where_to_set_it(
    public: Reply, ingest: Reply, sentence: str | None
) -> None:
    async with ProviderDouble() as double:
        double.on(
            "GET", "/rest/v1/jobs", lambda request: public if request.headers["accept-profile"] == "public" else ingest
        )
        if sentence is None:
            assert (await exposure.plan_schemas(_target(double))).changes == ()
        else:
            with pytest.raises(StackError, match=sentence):
                await exposure.plan_schemas(_target(double))


@pytest.mark.parametrize(("unconfirmed", "warnings"), [(True, 1), (False, 0)])
async def test_addresses_that_nobody_confirms_are_warned_of(unconfirmed: bool, warnings: int) -> None:
    async with ProviderDouble() as double:
        double.on("GET", "/auth/v1/settings", Reply(200, {"mailer_autoconfirm": unconfirmed, "disable_signup": False}))

        plan = await exposure.plan_auth(_target(double))

    assert len(plan.warnings) == warnings


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            Reply(401, {"code": "UNAUTHORIZED_NO_AUTH_HEADER"}),
            r"\[functions.search\] in supabase/config.toml lacks verify",
        ),
        (Reply(404, {"code": "NOT_FOUND"}), "look at its logs in the dashboard. It answered 404"),
        (Reply(503, {"code": "BOOT_ERROR", "message": "Function failed to start"}), "It answered 503"),
    ],
)
async def test_a_function_that_does_not_run_is_named(
    answer: Reply, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "WAITS", (0.0, 0.0))
    async with ProviderDouble() as double:
        double.on("GET", "/functions/v1/search", answer)

        with pytest.raises(StackError, match=sentence) as raised:
            await functions.answers(_target(double), "search")

    assert str(raised.value).startswith("The function search does not run")


async def test_a_function_that_boots_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "WAITS", (0.0, 0.0))
    async with ProviderDouble() as double:
        double.on(
            "GET", "/functions/v1/health", Reply(503, {"code": "BOOT_ERROR"}), Reply(503, {"status": "unhealthy"})
        )

        await functions.answers(_target(double), "health")

    assert len(double.requests) == 2


@pytest.mark.parametrize(
    ("settings", "listed", "warned"),
    [
        ({}, {}, "answers 503 until SLUICE_EMBEDDINGS_URL"),
        ({"SLUICE_EMBEDDINGS_URL": "http://localhost:8080/v1"}, {}, "which no function there can reach"),
        ({"SLUICE_EMBEDDINGS_URL": "https://api.openai.com/v1"}, {}, None),
        ({}, {"SLUICE_EMBEDDINGS_URL": "a digest"}, None),
    ],
)
def test_a_search_that_cannot_embed_is_warned_of(
    settings: dict[str, str], listed: dict[str, Any], warned: str | None
) -> None:
    warnings = hooks.warnings(hosted(GOOD | settings), listed)

    assert [warned in warning for warning in warnings] == ([True] if warned else [])


def test_every_function_takes_keys_that_are_no_jwt() -> None:
    config = tomllib.loads((REPOSITORY / "supabase" / "config.toml").read_text())["functions"]

    assert {name: config[name]["verify_jwt"] for name in functions.names(REPOSITORY)} == dict.fromkeys(
        functions.names(REPOSITORY), False
    )
