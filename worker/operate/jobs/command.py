"""`sluice jobs`: look at jobs, and have one explained."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from worker.operate.explain.facts import Facts
from worker.operate.jobs.by_hand import cancel, retry
from worker.operate.jobs.selection import STATES, Selection, filters, resolve
from worker.operate.jobs.watch import watch
from worker.operate.terminal import ask, say_json, show, visible
from worker.operate.words import clock, moment, span

if TYPE_CHECKING:
    from worker.db.pool import Database
    from worker.settings import Settings

_PAGE = 50
_MOST = 1000


@click.group()
def jobs() -> None:
    """Look at jobs, follow them, have them explained, retry and cancel them.

    The worker's DATABASE_URL is enough: its login may read all jobs and the names of their files, and each retry,
    cancel and pause leaves a row in ingest.audit.
    """


jobs.add_command(retry)
jobs.add_command(cancel)
jobs.add_command(watch)


@jobs.command("list")
@filters(*STATES)
@click.option("--limit", type=click.IntRange(1, _MOST), default=_PAGE, show_default=True, help="How many at most.")
@click.option("--before", type=click.IntRange(1), help="Go on with jobs older than this one: `next` of a page before.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_jobs(
    states: tuple[str, ...], tenant: UUID | None, document: str | None, code: str | None, since: Any, stage: str | None,
    limit: int, before: int | None, as_json: bool,
) -> None:  # fmt: skip
    """List jobs, the newest first.

    In a pipe: lines of job, state, stage, attempt, code, made, tenant and file, with tabs between.

    Exit codes: 0 done, also when there are none; 1 the database did not answer; 2 wrong usage or settings.
    """
    selection = Selection(states, tenant, document, code, since, stage)
    rows = ask(lambda db, _: selection.page(db, before, limit))
    following = rows[-1]["id"] if len(rows) == limit else None
    if as_json:
        say_json({"jobs": [dict(row) for row in rows], "next": following})
        return
    show(
        ("job", "state", "stage", "attempt", "code", "made (UTC)", "tenant", "file"),
        [
            (
                row["id"], _state(row), row["stage"], f"{row['attempt']}/{row['max_attempts']}", row["error_code"],
                row["created_at"], row["tenant_id"], row["name"] or "(deleted)",
            )
            for row in rows
        ],
        none="No job matches.",
    )  # fmt: skip
    if following is not None:
        click.echo(f"There may be more: --before {following}", err=True)


def _state(row: Any) -> str:
    done = row["progress"]
    return f"{row['state']} {done:.0%}" if row["state"] == "running" and done is not None else str(row["state"])


@jobs.command("show")
@click.argument("job", metavar="ID|NAME")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_job(job: str, as_json: bool) -> None:
    """Show one job with its events: by the job's id, the document's id, or the file's name.

    Exit codes: 0 done; 1 there is no such job; 2 wrong usage or settings, or several files have that name.
    """
    report = _report(job)
    if as_json:
        say_json({name: report[name] for name in ("job", "document", "object", "timeline")})
        return
    told = report["job"] or report["document"] or report["object"]
    rows = [(name.replace("_", " "), value) for name, value in told.items() if value is not None]
    if report["job"] and report["document"]:
        rows.append(("file", report["document"]["name"]))
    show(("", ""), rows, none="")
    _timeline(report)


@jobs.command("explain")
@click.argument("job", metavar="ID|NAME")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def explain_job(job: str, as_json: bool) -> None:
    """Explain why a job is where it is, or why a file has none: by its id, the document's id, or the file's name.

    It names the first cause rather than the last symptom, the layer, what shows it, whether it heals by itself and
    when, and what to do; then all layers and the timeline. Of a completed job it says where the time went.

    SLUICE_TENANT_CAP is taken from here: set it as the workers have it.

    Exit codes: 0 explained; 1 there is no such job; 2 wrong usage or settings, or several files have that name.
    """
    report = _report(job)
    if as_json:
        say_json(report)
        return
    told, document, found, cause, heals = (report[name] for name in ("job", "document", "object", "cause", "heals"))
    what = f"Job {told['id']}" if told else f"Document {document['id']}" if document else f"Object {found['id']}"
    name = (document or found)["name"]
    click.echo(f"{what}  {told['state'] if told else report['verdict']}" + (f"  {visible(name)}\n" if name else "\n"))
    since = f"  (since {clock(moment(cause['since']))})" if cause["since"] else ""
    click.echo(f"Cause   {cause['layer']}: {visible(cause['says'])}{since}")
    for line in cause["evidence"]:
        click.echo(f"        - {visible(line)}")
    for other in report["also"]:
        click.echo(f"Also    {other['layer']}: {visible(other['says'])} {other['remedy']}")
    if heals["by_itself"] is not None:
        words = ("by itself", "at") if heals["by_itself"] else ("not by itself", "looked at again at")
        at = f", {words[1]} {clock(moment(heals['at']))}" if heals["at"] else ""
        click.echo(f"Heals   {words[0]}{at}. {heals['how']}")
    click.echo(f"Do      {report['remedy']['says']}")
    if report["remedy"]["command"]:
        click.echo(f"        {report['remedy']['command']}")
    if longest := report["longest_wait"]:
        click.echo(f"Longest {longest['layer']}: {longest['why']}, {span(longest['seconds'])}")
    click.echo()
    show(
        ("layer", "", "time", "evidence"),
        [(row["layer"], row["verdict"], span(row["seconds"]) if row["seconds"] else "", "; ".join(row["evidence"]))
         for row in report["layers"]],
        none="",
    )  # fmt: skip
    _timeline(report)


def _timeline(report: dict[str, Any]) -> None:
    show(
        ("at (UTC)", "layer", "what", "took"),
        [(moment(row["at"]), row["layer"], row["says"], "" if row["seconds"] is None else span(row["seconds"]))
         for row in report["timeline"]],
        none="Nothing is noted of it any more.",
    )  # fmt: skip


def _report(reference: str) -> dict[str, Any]:
    from worker.operate.explain.report import explain

    async def gather(db: Database, settings: Settings) -> dict[str, Any] | None:
        job, document = await resolve(db, reference)
        told = await db.fetchval("explain_job", job, document)
        return None if told is None else explain(Facts(json.loads(told), tenant_cap=settings.tenant_cap))

    report = ask(gather)
    if report is None:
        click.echo(
            f"There is no job {reference}: it never was, or it was pruned. sluice jobs list shows what there is.",
            err=True,
        )
        sys.exit(1)
    return report
