"""What a worker that cannot start says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import worker.__main__  # noqa: F401 - adds the commands to the group
from worker.operate.cli import sluice

NAMES = ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_every_missing_setting_is_named() -> None:
    result = CliRunner().invoke(sluice, ["worker"])

    assert result.exit_code == 2
    assert all(f"{name}: is not set" in result.output for name in NAMES[:3])


def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_SLOTS", "many-sb_secret_x")

    result = CliRunner().invoke(sluice, ["worker"])

    assert result.exit_code == 2
    assert "SLUICE_SLOTS" in result.output
    assert "sb_secret" not in result.output


def test_a_database_that_does_not_answer_is_named_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://worker:hush@127.0.0.1:1/postgres")
    monkeypatch.setenv("SUPABASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SUPABASE_SECRET_KEY", "sb_secret_hush")

    result = CliRunner().invoke(sluice, ["worker"])

    assert result.exit_code == 1
    assert "The database at 127.0.0.1 did not answer. Check" in result.output
    assert "hush" not in result.output


@pytest.mark.parametrize(
    "url",
    [
        "http://abc.supabase.co/functions/v1/parse-webhook", "https://127.0.0.1/functions/v1/parse-webhook",
        "https://abc.supabase.co/functions/v1/parse-webhook?x=1", "https://[::1]/parse-webhook", "https://localhost/x",
        "https://abc.supabase.co/" + "x" * 100, "abc.supabase.co/parse-webhook",
    ],
)  # fmt: skip
def test_a_webhook_address_that_no_parser_would_call_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("SLUICE_WEBHOOK_URL", url)

    result = CliRunner().invoke(sluice, ["worker"])

    assert result.exit_code == 2
    assert "SLUICE_WEBHOOK_URL: Value error, must be an https address" in result.output


@pytest.mark.parametrize("host", ["abcdefghijklmnopqrst.supabase.co", "api.example.org:8443"])
def test_the_address_of_an_edge_function_is_taken(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("SLUICE_WEBHOOK_URL", f"https://{host}/functions/v1/parse-webhook")

    assert "SLUICE_WEBHOOK_URL" not in CliRunner().invoke(sluice, ["worker"]).output
