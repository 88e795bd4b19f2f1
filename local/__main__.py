"""`python -m local`: the embedded Supabase from the command line."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from local import migrations
from local.errors import StackError
from local.lock import Lock
from local.stack import DEFAULT_DIRECTORY, DEFAULT_PORT, Stack, remove, stop_leftover

_directory = click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DIRECTORY,
    show_default=".sluice/stack in the repository",
    help="Where the stack keeps everything.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
_NOT_RUNNING = 3


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """A Supabase for laptops, tests and the demo: Postgres, Auth, REST, Storage and functions, without Docker."""


@main.command()
@_directory
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: a free one.")
@click.option("--bare", is_flag=True, help="Apply no migrations: a project before its first scripts/deploy.")
@_json
def up(directory: Path, port: int, bare: bool, as_json: bool) -> None:
    """Start the stack and keep it up until Ctrl-C."""
    with asyncio.Runner() as runner:
        try:
            runner.run(_up(Stack(directory, port=port, bare=bare), as_json))
        except StackError as error:
            raise click.ClickException(str(error)) from error
        except asyncio.CancelledError:
            click.echo("Stopped.", err=True)


async def _up(stack: Stack, as_json: bool) -> None:
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    async with stack:
        click.echo(
            json.dumps(stack.facts())
            if as_json
            else _described("The local Supabase is up. Ctrl-C stops it.", stack.facts())
        )
        sys.stdout.flush()
        await stack.ended()


def _described(title: str, facts: dict[str, Any]) -> str:
    lines = [f"  {name.replace('_', ' '):<20} {value}" for name, value in facts.items()]
    return "\n".join([title, "", *lines])


@main.command()
@_directory
@_json
def status(directory: Path, as_json: bool) -> None:
    """Say whether a stack runs in the directory, and its addresses and keys; exit status 3 if none does."""
    facts = Lock(directory / "lock").said()
    if as_json:
        click.echo(json.dumps({"running": facts is not None, "directory": str(directory), **(facts or {})}))
    elif facts is None:
        click.echo(f"Nothing runs in {directory}. Start it with: python -m local up")
    else:
        click.echo(_described("A local Supabase is up here.", facts))
    if facts is None:
        sys.exit(_NOT_RUNNING)


@main.command()
@_directory
def types(directory: Path) -> None:
    """Print the database's types for TypeScript, of a stack that runs; docs/database.types.ts holds them."""
    facts = Lock(directory / "lock").said()
    if facts is None:
        raise click.ClickException(f"Nothing runs in {directory}. Start it with: python -m local up")
    click.echo(asyncio.run(migrations.generate_types(facts["database_url"])), nl=False)


@main.command()
@_directory
def down(directory: Path) -> None:
    """Stop the stack of the directory, also what a killed one left behind."""
    lock = Lock(directory / "lock")
    pid = lock.holder
    if pid:
        os.kill(pid, signal.SIGTERM)
        if not _within(30, lambda: lock.holder is None):
            raise click.ClickException(f"Process {pid} did not stop within 30 s. Look at what it prints, or end it.")
        click.echo("Stopped.")
    elif stop_leftover(directory):
        click.echo("Stopped a Postgres that a killed stack had left behind.")
    else:
        click.echo(f"Nothing runs in {directory}.")


@main.command()
@_directory
@click.option("--yes", is_flag=True, help="Do not ask.")
def reset(directory: Path, yes: bool) -> None:
    """Remove the stack's database, files and keys; the next `up` makes new ones."""
    lock = Lock(directory / "lock")
    if pid := lock.holder:
        raise click.ClickException(f"{directory} is in use by process {pid}. Stop it first: python -m local down")
    if not yes:
        click.confirm(f"Remove the database, files and keys in {directory}?", abort=True)
    stop_leftover(directory)
    remove(directory)
    click.echo("Removed.")


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    main(prog_name="python -m local")
