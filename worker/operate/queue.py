"""`sluice queue`: stop giving out jobs, give them out again, and how the queue stands."""

from __future__ import annotations

import json

import click

from worker.operate.terminal import ask, say_json, show
from worker.operate.words import counted, span

_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group()
def queue() -> None:
    """Pause and resume the queue, and see how it stands. The worker's DATABASE_URL is enough."""


@queue.command()
@_as_json
def pause(as_json: bool) -> None:
    """Give out no more jobs. What runs goes on, uploads are accepted and wait.

    A second time changes nothing. Exit codes: 0 it is paused; 1 the database did not answer; 2 wrong settings.
    """
    since = ask(lambda db, _: db.fetchval("pause_by_hand"))
    if as_json:
        say_json({"paused_at": since})
    else:
        click.echo(f"The queue is paused since {since:%Y-%m-%d %H:%M:%S} UTC. To go on: sluice queue resume.")


@queue.command()
@_as_json
def resume(as_json: bool) -> None:
    """Give out jobs again, and wake the workers.

    Exit codes: 0 it gives out jobs, also when it was not paused; 1 the database did not answer; 2 wrong settings.
    """
    was_paused = ask(lambda db, _: db.fetchval("resume_by_hand"))
    if as_json:
        say_json({"was_paused": was_paused})
    else:
        click.echo("The queue gives out jobs again." if was_paused else "The queue was not paused.")


@queue.command()
@_as_json
def status(as_json: bool) -> None:
    """Show how many jobs wait, run, sleep and fail, how old the oldest is, and the open alerts.

    Exit codes: 0 done, also while it is paused; 1 the database did not answer; 2 wrong settings.
    """
    told = json.loads(ask(lambda db, _: db.fetchval("queue_status")))
    if as_json:
        say_json(told)
        return
    oldest = told["oldest_seconds"]
    show(
        ("queue", told["queue"]),
        [
            ("paused", f"since {told['paused_at']}" if told["paused_at"] else "no"),
            ("waiting", f"{told['waiting']}" + (f", the oldest for {span(oldest)}" if oldest is not None else "")),
            ("tenants waiting", told["tenants_waiting"]),
            ("sleeping", ", ".join(f"{count} {code}" for code, count in sorted(told["later"].items())) or 0),
            ("running", told["running"]),
            ("running without a live lease", told["running_without_lease"]),
            ("completed within the hour", told["completed_last_hour"]),
            ("given up within the day", told["discarded_today"]),
            *(
                (f"alert {alert['kind']}", f"{alert['subject']}, {counted(alert['count'], 'time')}: {alert['message']}")
                for alert in told["alerts"]
            ),
        ],
        none="",
    )
