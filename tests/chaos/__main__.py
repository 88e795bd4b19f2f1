"""`scripts/chaos`: one run, and its report as JSON in the last line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from local import interrupt
from local.errors import StackError
from tests.chaos.run import Settings, passed, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--n", "count", type=click.IntRange(10, 100_000), default=200, show_default=True, help="Uploads and overwrites."
)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--rate", type=click.FloatRange(min=0.1), default=8.0, show_default=True, help="Of them a second.")
@click.option("--faults", type=click.FloatRange(min=0.01), default=2.5, show_default=True, help="Faults a second.")
@click.option("--workers", type=click.IntRange(2, 16), default=3, show_default=True)
@click.option("--lease", type=click.FloatRange(1, 3600), default=2.0, show_default=True, help="Seconds.")
@click.option("--only-kills", is_flag=True, help="Kill workers and nothing else, to measure recovery.")
@click.option("--unfenced", is_flag=True, help="Take the fence away first; what follows must be found.")
@click.option("--keep", type=click.Path(path_type=Path), help="A new folder for the database and the workers' logs.")
@click.option("--json", "only_json", is_flag=True, help="Print nothing but the JSON line.")
def main(
    count: int, seed: int, rate: float, faults: float, workers: int, lease: float, only_kills: bool, unfenced: bool,
    keep: Path | None, only_json: bool,
) -> None:  # fmt: skip
    """Run the queue under faults, and exit 0 only when nothing was lost, doubled or left behind."""
    settings = Settings(count, seed, workers, rate, faults, lease, only_kills, unfenced)
    try:
        status = interrupt.run(_report(settings, keep, only_json))
    except StackError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(status)


async def _report(settings: Settings, keep: Path | None, only_json: bool) -> int:
    report = await run(settings, keep)
    if not only_json:
        _tell(report)
    click.echo(json.dumps(report))
    return 0 if passed(report) else 1


def _tell(report: dict[str, Any]) -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for what, number in value.items():
                click.echo(f"  {what}: {number}")
        else:
            click.echo(f"{name}: {value}")


if __name__ == "__main__":
    main()
