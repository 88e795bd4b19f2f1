"""The table of codes in docs/operations.md, and the rights that the doctor reads out of the migrations."""

from __future__ import annotations

import re
import tomllib

import worker.__main__ as composition
from local import deno
from worker.operate.doctor import database, migrations
from worker.operate.doctor.check import GENERAL
from worker.operate.doctor.report import table_of_problems
from worker.operate.doctor.run import CHECKS


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    # To write it anew: python -c "from tests.unit.test_doctor_docs import table; print(table())"
    section = (
        (deno.REPOSITORY / "docs" / "operations.md").read_text().partition("\n## Doctor\n")[2].partition("\n## ")[0]
    )

    assert table() in section


def test_a_code_means_one_thing() -> None:
    problems = {problem for check in CHECKS for problem in check.problems} | set(GENERAL)

    codes = [problem.code for problem in problems]
    assert len(codes) == len(set(codes))
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_what_a_check_needs_stands_before_it() -> None:
    seen: set[str] = set()
    for check in CHECKS:
        assert seen.issuperset(check.needs + check.unless), check.name
        seen.add(check.name)


def test_every_problem_is_one_of_its_checks_own() -> None:
    for check in CHECKS:
        source = check.run.__code__.co_names
        raised = {name for name in source if name.isupper() and name in check.run.__globals__}
        mine = {
            name
            for name in raised
            if type(check.run.__globals__[name]).__name__ == "Problem"
            and check.run.__globals__[name] not in check.problems
        }
        assert mine == set(), check.name


def test_the_workers_rights_are_read_as_they_are_granted() -> None:
    written = tomllib.loads((deno.REPOSITORY / "tests" / "database" / "grants.toml").read_text())
    functions = {name for name, line in written["functions"].items() if "ingest_worker" in line["execute"]}
    relations = set()
    for name, grants in (written["tables"] | written["sequences"]).items():
        for privilege in grants.get("ingest_worker", []):
            found = re.fullmatch(r"(\w+)(?:\((\w+)\))?", privilege)
            assert found is not None
            relations.add((name, found[1], found[2] or ""))

    rights = migrations.rights("ingest_worker")
    assert rights.relations == relations
    # Functions that a later migration dropped are not asked for: there is nothing to ask about.
    assert {name for name in rights.functions if name in written["functions"]} == functions


def test_the_doctor_counts_the_connections_that_a_worker_makes() -> None:
    assert database.POOLED == composition._CONNECTIONS


def table() -> str:
    """Return the table as the docs have it."""
    head = ["| code | check | | says | remedy |", "|---|---|---|---|---|"]
    return "\n".join([*head, *table_of_problems(CHECKS, GENERAL)])
