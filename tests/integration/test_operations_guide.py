"""docs/operations.md: every alert has its part, every query runs as the worker, every command is one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

import worker.__main__  # noqa: F401 - adds the commands to the group
from tests.conftest import Database
from tests.database.project import Project
from worker.operate.cli import sluice
from worker.operate.explain import ended, held, report
from worker.settings import Settings

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "operations.md").read_text()
JOBS, ALERTS = (GUIDE.split(f"\n## {name}\n")[1].split("\n## ")[0] for name in ("Jobs", "Alerts"))
QUERIES = re.findall(r"```sql\n(.*?);\n```", ALERTS, re.DOTALL)
COMMANDS = sorted(
    {line for line in re.findall(r"```sh\n(.*?)```", JOBS, re.DOTALL)[0].splitlines() if line}
    | {command for command in re.findall(r"`(sluice [^`]+)`", JOBS + ALERTS) if "…" not in command}
)
VALUES = {"TENANT": "6f9619ff-8b86-d011-b42d-00cf4fc964ff", "N": "3", "CODE": "no_text"}


def kinds_raised() -> set[str]:
    """Return every kind of alert that the worker's source or the migrations raise."""
    found = set()
    for file in (REPOSITORY / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                values = [argument.value if isinstance(argument, ast.Constant) else None for argument in node.args]
                if "raise_alert" in values[:1]:
                    assert isinstance(values[1], str), f"{file}: an alert whose kind is no constant"
                    found.add(values[1])
    calls = 0
    for file in (REPOSITORY / "supabase").rglob("*"):
        if file.suffix in (".sql", ".ts"):
            text = file.read_text()
            literal = re.findall(r"(?:perform|select) ingest\.raise_alert\(\s*'(\w+)'", text)
            calls += len(literal)
            assert len(re.findall(r"(?:perform|select) ingest\.raise_alert\(", text)) == len(literal), file
            found |= set(literal)
    assert calls >= 3
    return found


def test_every_alert_that_can_be_raised_has_a_part_with_query_and_remedy_and_no_other_has() -> None:
    parts = {
        part.partition("`\n")[0]: part for part in re.split(r"\n### ", ALERTS) if part.startswith("Alert `")
    }  # fmt: skip
    assert {name.removeprefix("Alert `") for name in parts} == kinds_raised()
    for name, part in parts.items():
        assert "```sql\n" in part, name
        assert "\nRemedy" in part, name


@pytest.mark.parametrize("trouble", ["stands still", "oldest age", "given up", "disk", "provider", "Keys"])
def test_the_runbook_has_a_part_with_a_query_for_each_trouble(trouble: str) -> None:
    (part,) = [part for part in re.split(r"\n### ", ALERTS)[1:] if trouble in part.splitlines()[0]]
    assert "```sql\n" in part


@pytest.mark.parametrize("query", QUERIES)
async def test_every_query_runs_with_the_workers_login(query: str, database: Database) -> None:
    project = await Project(database).open()
    await project.upload(await project.user())
    await project.worker.execute("select ingest.raise_alert('misconfigured', 'embedding_key', 'Wrong.')")
    await project.worker.fetch(query)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_with_these_arguments(command: str) -> None:
    words = [VALUES.get(word, word) for word in command.split()[1:]]
    found: click.Command = sluice
    while isinstance(found, click.Group) and words:
        found = found.commands[words.pop(0)]
    if words:
        found.make_context(found.name, words)


def test_every_cause_that_can_be_named_is_listed_and_no_other() -> None:
    listed = set(re.findall(r"`(\w+)`", JOBS[JOBS.index("| Jobs that") :].split("\n\n")[0])) - {"cause"}
    named = set()
    for module in (ended, held, report):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Cause":
                named |= strings_of(node.args[0])
    named |= {"wrong_key", "wrong_model", "misconfigured", "encrypted", "provider_refuses_text", "unreadable_file"}
    assert listed == named
    situations = "".join(file.read_text() for file in (REPOSITORY / "tests" / "database").glob("test_explain_*.py"))
    assert {name for name in named if f'"{name}"' not in situations} == set()  # each is made at least once


def strings_of(node: ast.expr) -> set[str]:
    """Return what this expression may come to: a constant, or either end of an `if`."""
    if isinstance(node, ast.IfExp):
        return strings_of(node.body) | strings_of(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_every_setting_that_is_named_is_one() -> None:
    fields = {f"SLUICE_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"`(SLUICE_[A-Z_]+)`", JOBS + ALERTS)) - {"SLUICE_EMBEDDINGS_KEY"}  # the function's
    assert named
    assert named <= fields
