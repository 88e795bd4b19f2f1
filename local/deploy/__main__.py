"""`python -m local.deploy`: what scripts/deploy runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from local import interrupt
from local.deploy import report, run
from local.deploy.step import Outcome, Status
from local.deploy.target import KEPT, Target, WrongSettings, embedded, hosted, read
from local.errors import StackError
from local.stack import DEFAULT_DIRECTORY

_FAILED, _USAGE, _DISAGREE = 1, 2, 3


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", "kind", type=click.Choice(["hosted", "local"]), help="SLUICE_TARGET, else hosted.")
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings, before the environment's.",
)
@click.option("--dry-run", is_flag=True, help="Say what every step would do, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask before a hosted project is changed.")
@click.option("--rotate-password", is_flag=True, help="Give the worker's role a new password.")
@click.option("--show", is_flag=True, help="Print the worker's environment with its secrets.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    default=KEPT,
    help="Where the worker's environment is kept.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line; the rest to stderr.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_DIRECTORY,
    help="Of a local target: where its stack runs.",
)
def main(
    kind: str | None, env_file: Path | None, dry_run: bool, yes: bool, rotate_password: bool, show: bool, as_json: bool,
    directory: Path, keep: Path,
) -> None:  # fmt: skip
    """Bring a project to what this checkout holds: migrations, the worker's login, functions and their settings."""
    console = Console(stderr=as_json, highlight=False)
    try:
        target = _target(kind, env_file, directory, keep, rotate=rotate_password)
        code, outcomes = _deploy(target, console, dry_run=dry_run, yes=yes, as_json=as_json)
    except (click.ClickException, click.Abort, StackError) as error:
        raise _told(error, as_json=as_json) from error
    if outcomes and code == 0:
        report.variables(console, target, show=show)
    if as_json:
        click.echo(report.as_json(target, outcomes, dry_run=dry_run, code=code, show=show))
    sys.exit(code)


def _target(kind: str | None, env_file: Path | None, directory: Path, keep: Path, *, rotate: bool) -> Target:
    settings = read(env_file)
    kind = kind or settings.get("SLUICE_TARGET", "hosted")
    if kind == "hosted":
        try:
            return hosted(settings, rotate=rotate, kept=keep)
        except WrongSettings as error:
            raise click.UsageError(
                f"These settings must be corrected, in the environment or by --env-file:\n{error}"
            ) from None
    if kind != "local":
        raise click.UsageError(f"SLUICE_TARGET is {kind}; it must be hosted or local.")
    if rotate:
        raise click.UsageError("The local stack keeps its own passwords: --rotate-password is for hosted projects.")
    return embedded(directory, settings, kept=keep)


def _told(error: Exception, *, as_json: bool) -> click.ClickException | SystemExit:
    """Return what ends the program: the sentence on standard error, and as JSON where that was asked for."""
    if isinstance(error, click.Abort):
        ending: click.ClickException | SystemExit = SystemExit(interrupt.INTERRUPTED)
        message, code = "Stopped; nothing was changed.", interrupt.INTERRUPTED
        click.echo(f"\n{message}", err=True)
    else:
        ending = error if isinstance(error, click.ClickException) else click.ClickException(str(error))
        message, code = ending.format_message(), ending.exit_code
    if as_json:
        click.echo(json.dumps({"error": message, "exit_code": code}))
    return ending


def _deploy(target: Target, console: Console, *, dry_run: bool, yes: bool, as_json: bool) -> tuple[int, list[Outcome]]:
    found: list[Outcome] = []

    async def look() -> int:
        found[:] = await run.survey(target, lambda _: None)
        return _code(found)

    where = f"project {target.name} ({target.api_url})" if target.hosted else f"the local stack ({target.api_url})"
    console.print(f"Looking at {where} …", soft_wrap=True)
    code = interrupt.run(look())
    if code == interrupt.INTERRUPTED:
        return code, []
    changes = sum(len(each.changes) for each in found)
    if code or dry_run or not changes:
        report.table(console, found)
        console.print(_summary(code, changes, dry_run=dry_run), soft_wrap=True)
        return code, found
    if target.hosted and not yes:
        report.table(console, found)
        _ask(f"Make these {changes} changes to {where}?", as_json=as_json)

    done: list[Outcome] = []

    async def deploy() -> int:
        def tell(outcome: Outcome) -> None:
            done.append(outcome)
            report.line(console, outcome)

        return _code(await run.carry_out(target, tell))

    code = interrupt.run(deploy())
    if code == interrupt.INTERRUPTED:
        console.print("What is marked as changed stands. Run this again: it goes on where it stopped.")
        return code, done
    console.print(_summary(code, sum(len(e.changes) for e in done if e.status is Status.CHANGED)), soft_wrap=True)
    return code, done


def _ask(question: str, *, as_json: bool) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is here to ask, and nothing was changed. Look at --dry-run, then add --yes.")
    if not click.confirm(question, err=as_json):
        raise click.ClickException("Nothing was changed.")


def _summary(code: int, changes: int, *, dry_run: bool = False) -> str:
    if code:
        return "It ended there; run this again when that is mended, and it goes on where it stopped."
    if dry_run:
        return f"A dry run: {changes} changes would be made, and none was." if changes else "Nothing is to be changed."
    return f"Done: {changes} changes." if changes else "Nothing was to be changed."


def _code(outcomes: Sequence[Outcome]) -> int:
    failed = [each for each in outcomes if each.status is Status.FAILED]
    return 0 if not failed else _DISAGREE if failed[0].refused else _FAILED


if __name__ == "__main__":
    main(prog_name="scripts/deploy")
