"""The command `sluice doctor`."""

from __future__ import annotations

import asyncio
import json
import sys

import click

_NAMES = "LAYER|CHECK"


@click.command()
@click.option(
    "--only", "chosen", multiple=True, metavar=_NAMES, help="Look at this only, and at what it needs; again for more."
)
@click.option("--list", "listing", is_flag=True, help="Show what can be looked at, and look at nothing.")
@click.option("--paid", is_flag=True, help="Ask also what costs money: one token of the embedding service.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(chosen: tuple[str, ...], listing: bool, paid: bool, as_json: bool) -> None:
    """Look for every classic failure of an installation, and say what to do about it.

    Reads the same environment as the worker, also one that is missing or half wrong. Changes nothing in
    the project, and prints no secret. What depends on a failed check is skipped; the rest is looked at.
    docs/operations.md lists every code.

    `sluice doctor --only migrations` tells before a deploy whether the database has this version's
    migrations.

    Exit codes: 0 all is well, warnings perhaps; 1 something failed, or a setting is missing; 2 wrong usage;
    130 interrupted.
    """
    from worker.operate.doctor import report
    from worker.operate.doctor.check import LAYERS
    from worker.operate.doctor.examination import Examination
    from worker.operate.doctor.run import CHECKS, examine, with_needs

    names = {check.name for check in CHECKS}
    for name in chosen:
        if name not in names and name not in LAYERS:
            raise click.UsageError(
                f"There is no layer or check {name}. Layers: {', '.join(LAYERS)}. "
                "`sluice doctor --list` shows the checks."
            )
    wanted = [check for check in CHECKS if not chosen or check.name in chosen or check.layer in chosen]
    if listing:
        if as_json:
            click.echo(json.dumps({"checks": [{"name": c.name, "layer": c.layer, "about": c.about} for c in wanted]}))
        else:
            report.print_checks(wanted)
        return
    try:
        findings = asyncio.run(examine(Examination.begin(paid=paid), with_needs(wanted)))
    except KeyboardInterrupt:
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    # What was only needed is told where it failed: it is why the rest was skipped.
    told = [found for found in findings if found.status == "failed" or found.name in {check.name for check in wanted}]
    if as_json:
        click.echo(json.dumps(report.as_object(told)))
    else:
        report.print_findings(told)
    # What could not be looked at for want of a setting is not well: a deploy must not go on without DATABASE_URL.
    sys.exit(1 if any(found.status == "failed" or found.code == "not_set" for found in findings) else 0)
