"""The shape of what `sluice jobs explain` reports, whatever became of the job."""

from __future__ import annotations

import shlex
from typing import Any

import click

import worker.__main__  # noqa: F401 - adds the commands to the group
from worker.operate.cli import sluice
from worker.operate.explain.codes import LAYERS
from worker.operate.words import moment

KEYS = {
    "schema", "at", "verdict", "job", "document", "object", "cause", "also", "heals", "remedy", "longest_wait", "usage",
    "layers", "timeline",
}  # fmt: skip
CAUSE = {"rule", "layer", "says", "since", "evidence", "remedy", "command"}


def assert_known(command: str) -> None:
    """Check that the command line has this command; placeholders stand for values."""
    words = shlex.split(command)
    assert words.pop(0) == "sluice"
    found: click.Command = sluice
    while isinstance(found, click.Group):
        found = found.commands[words.pop(0)]
    values = {"USD": "1", "N": "1"}
    found.make_context(found.name, [values.get(word, word) for word in words])


def check_schema(report: dict[str, Any]) -> None:
    """Check a report's keys, at every level, and that each command in it is one."""
    assert report.keys() == KEYS
    assert report["schema"] == 1
    for cause in (report["cause"], *report["also"]):
        assert cause.keys() == CAUSE
        assert cause["layer"] in LAYERS
        assert cause["says"]
        assert cause["remedy"].endswith(".")
        assert all(isinstance(line, str) for line in cause["evidence"])
    assert report["heals"].keys() == {"by_itself", "at", "how"}
    assert report["remedy"].keys() == {"says", "command"}
    assert [row["layer"] for row in report["layers"]] == list(LAYERS)
    for row in report["layers"]:
        assert row.keys() == {"layer", "verdict", "seconds", "evidence"}
        assert row["verdict"] in ("cause", "trouble", "ok", "not seen")
    assert sum(row["verdict"] == "cause" for row in report["layers"]) == 1
    for command in filter(None, (report["remedy"]["command"], *(other["command"] for other in report["also"]))):
        assert_known(command)
    for entry in report["timeline"]:
        assert entry.keys() == {"at", "layer", "event", "says", "seconds", "code"}
    times = [moment(entry["at"]) for entry in report["timeline"]]
    assert times == sorted(times)
