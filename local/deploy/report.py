"""What a person sees: a table on a terminal, plain lines in a pipe, or one JSON object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from local.deploy import environment
from local.deploy.step import Outcome, Status
from local.deploy.target import Target

_COLOURS = {
    Status.UNCHANGED: "dim",
    Status.WOULD_CHANGE: "yellow",
    Status.CHANGED: "green",
    Status.FAILED: "bold red",
    Status.NOT_REACHED: "dim",
}


def table(console: Console, outcomes: Sequence[Outcome]) -> None:
    """Print all outcomes at once."""
    if not console.is_terminal:
        for each in outcomes:
            line(console, each)
        return
    shown = Table("step", "what", "details", title_justify="left", show_lines=True)
    for each in outcomes:
        details = [escape(each.said), *(f"[yellow]• {escape(change)}[/]" for change in _shown(each))]
        details += [f"[bold yellow]! {escape(warning)}[/]" for warning in each.warnings]
        shown.add_row(each.step, f"[{_COLOURS[each.status]}]{each.status}[/]", "\n".join(details))
    console.print(shown)


def line(console: Console, outcome: Outcome) -> None:
    """Print one outcome as soon as it is there."""
    said = outcome.said.replace("\n", "\n    ")
    console.print(
        f"{outcome.step:<18} [{_COLOURS[outcome.status]}]{outcome.status:<12}[/] {escape(said)}", soft_wrap=True
    )
    for change in _shown(outcome):
        console.print(f"    - {escape(change)}", soft_wrap=True)
    for warning in outcome.warnings:
        console.print(f"    ! {escape(warning)}", soft_wrap=True)


def variables(console: Console, target: Target, *, show: bool) -> None:
    """Print what the worker must be given, secrets masked unless `show`."""
    console.print("\nThe worker's environment:", soft_wrap=True)
    for name, value in environment_of(target, show=show).items():
        console.print(f"  {name}={escape(value)}", soft_wrap=True)
    if target.kept_environment.exists():
        console.print(f"With its secrets it is in {escape(str(target.kept_environment))}", soft_wrap=True)
    host = target.host
    if host.startswith("db.") and host.endswith(".supabase.co"):
        console.print(
            "This address is IPv6 only, and Render has no IPv6: run this with the session pooler's URL instead.",
            soft_wrap=True,
        )


def environment_of(target: Target, *, show: bool) -> dict[str, str]:
    """Return the worker's environment as it may be shown."""
    found = environment.of(target, environment.known_password(target))
    return found if show else environment.masked(found)


def as_json(target: Target, outcomes: Sequence[Outcome], *, dry_run: bool, code: int, show: bool) -> str:
    """Return everything as one line of JSON."""
    said: dict[str, Any] = {
        "target": "hosted" if target.hosted else "local",
        "project": target.name,
        "dry_run": dry_run,
        "changed": any(each.status is Status.CHANGED for each in outcomes),
        "steps": [
            {
                "step": each.step,
                "status": each.status.value.replace(" ", "_"),
                "said": each.said,
                "changes": list(each.changes),
                "warnings": list(each.warnings),
            }
            for each in outcomes
        ],
        "worker_environment": environment_of(target, show=show),
        "worker_environment_file": str(target.kept_environment) if target.kept_environment.exists() else None,
        "exit_code": code,
    }
    return json.dumps(said)


def _shown(outcome: Outcome) -> tuple[str, ...]:
    return outcome.changes if outcome.status in (Status.WOULD_CHANGE, Status.FAILED) else ()
