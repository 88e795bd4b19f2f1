"""`sluice verify`: prove a target with the acceptance documents, and compare two such runs."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import secrets
import signal
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from worker.errors import IngestError
from worker.operate.cli import complaint, read_settings
from worker.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from worker.operate.verify.compare import Parity
    from worker.operate.verify.documents import Given
    from worker.operate.verify.run import Asked
    from worker.pipeline.embed.embedder import Embedder

INTERRUPTED = 130
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


@click.group()
def verify() -> None:
    """Prove a target with the two acceptance documents, and compare two such proofs."""


@verify.command()
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--target", type=click.Choice(["local", "env"]), default="env", show_default=True,
              help="Both are what the environment names; local refuses anything beyond this machine.")  # fmt: skip
@click.option("--publishable-key", envvar=["SUPABASE_PUBLISHABLE_KEY", "SUPABASE_ANON_KEY"], required=True,
              show_envvar=True, help="The key of apps, which the users of the run use.")  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, writable=True, path_type=Path),
              help="Where the report is written, with Markdown beside it.  [default: verify-RUN_ID.json]")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=1), default=900, show_default=True,
              help="Seconds until the documents must be searchable.")  # fmt: skip
@click.option("--worker-log", type=_FILE, help="Put the last 200 lines of this log into the report, secrets scrubbed.")
@click.option("--git-sha", envvar=["SLUICE_GIT_SHA", "RENDER_GIT_COMMIT"],
              help="Recorded where no worker says its own.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line; the rest to stderr.")
def run(
    files: tuple[Path, ...], target: str, publishable_key: str, out: Path | None, timeout: float,
    worker_log: Path | None, git_sha: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Upload FILES, the acceptance documents, and check everything that becomes of them.

    The target is named by SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, SUPABASE_SECRET_KEY and DATABASE_URL; a worker
    must run there. FILES are known by their SHA-256 and anything else is refused. With DATABASE_URL of the owner
    postgres nothing of the run stays; with the worker's login its history does, and is told. SLUICE_EMBEDDER and
    SLUICE_CHUNK_TOKENS must be as the worker has them.

    Exit codes: 0 all checks passed; 1 a check failed; 2 wrong usage or settings, or a file that is none of the
    documents; 130 Ctrl-C, after the clean-up.
    """
    from worker.operate.verify.documents import StandIn, identify

    try:
        given = identify(files)
    except StandIn as exc:
        raise click.UsageError(str(exc)) from exc
    settings = read_settings()
    if target == "local":
        for name, url in (
            ("SUPABASE_URL", settings.supabase_url),
            ("DATABASE_URL", settings.database_url.get_secret_value()),
        ):
            if urlsplit(url).hostname not in _LOOPBACK:
                raise click.UsageError(f"{name} is not on this machine. Use --target env for it.")
    if importlib.util.find_spec("pypdf") is None:
        raise click.UsageError(
            "The independent reader is not installed. Install the extra: pip install 'sluice[verify]'."
        )
    from worker.operate.verify.person import Target
    from worker.operate.verify.run import Asked

    run_id = secrets.token_hex(5)
    path = out or Path(f"verify-{run_id}.json")
    if not path.parent.is_dir():
        raise click.UsageError(f"There is no directory {path.parent} for the report. Make it, or choose another --out.")
    asked = Asked(
        run_id, Target(settings.supabase_url, publishable_key, settings.supabase_secret_key.get_secret_value()), target,
        timeout, settings.chunk_tokens, git_sha, worker_log, _secrets_of(settings, publishable_key),
    )  # fmt: skip
    try:
        report = asyncio.run(_interruptible(asked, given, settings))
    except IngestError as exc:
        raise complaint(exc) from exc
    _tell_run(report, path, as_json=as_json)
    sys.exit(INTERRUPTED if report["interrupted"] else 0 if report["ok"] else 1)


@verify.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--strict-times", is_flag=True, help="Let times beyond their bound decide; else they are only noted.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line; the rest to stderr.")
def compare(a: Path, b: Path, strict_times: bool, as_json: bool) -> None:
    """Compare the reports A and B of two runs, row by row with bound and verdict: the parity report.

    Exit codes: 0 parity; 1 something differs, or a run failed its own checks; 2 not comparable: other documents,
    an unfinished run, or no report.
    """
    from worker.operate.verify.compare import NotComparable, read_report
    from worker.operate.verify.compare import compare as compared

    try:
        parity = compared(read_report(a), read_report(b), strict_times=strict_times)
    except NotComparable as exc:
        raise click.UsageError(str(exc)) from exc
    _tell_parity(parity, as_json=as_json)
    sys.exit(0 if parity.good else 1)


async def _interruptible(asked: Asked, given: list[Given], settings: Settings) -> dict[str, Any]:
    """Run; the first Ctrl-C or SIGTERM leads to the clean-up, and later ones wait for it."""
    from worker.operate.verify.told import progress

    console = _console(stderr=True)
    task = asyncio.ensure_future(_run(asked, given, settings, console, progress))
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if not interrupted:
            interrupted = True
            task.cancel()
        console.print("Interrupted; what this run made is removed, a moment …", markup=False)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    try:
        return await task
    except asyncio.CancelledError:  # before anything was made
        sys.exit(INTERRUPTED)


async def _run(asked: Asked, given: list[Given], settings: Settings, console: Console, progress: Any) -> dict[str, Any]:
    from worker.db.pool import Database
    from worker.operate.verify.run import Run
    from worker.pipeline.fetch import ObjectStore

    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-verify-")))
        db = await Database.open(settings.database_url.get_secret_value(), size=2, pooler=settings.database_pooler)
        stack.push_async_callback(db.close)
        store = ObjectStore(settings.supabase_url, settings.supabase_secret_key.get_secret_value())
        stack.push_async_callback(store.close)
        embedder = _embedder(settings)
        if embedder is not None:
            stack.push_async_callback(embedder.aclose)
        step, moved = stack.enter_context(progress(console))
        return await Run(asked, given, db, store, embedder, directory, step, moved).run()


def _embedder(settings: Settings) -> Embedder | None:
    """Return the local model where that is what embeds and it is installed here; it judges the stored vectors."""
    if settings.embedder != "local":
        return None
    try:
        from worker.pipeline.embed.local import LocalEmbedder

        return LocalEmbedder(settings.model_dir, threads=settings.embed_threads)
    except (ImportError, IngestError):
        return None


def _secrets_of(settings: Settings, publishable_key: str) -> list[str]:
    found = [settings.supabase_secret_key.get_secret_value(), publishable_key]
    found += [part for part in (urlsplit(settings.database_url.get_secret_value()).password,) if part]
    found += [
        key.get_secret_value() for key in (settings.openai_api_key, settings.llama_cloud_api_key) if key is not None
    ]
    return found


def _tell_run(report: dict[str, Any], path: Path, *, as_json: bool) -> None:
    from worker.operate.verify import record
    from worker.operate.verify.told import show

    beside = record.write(report, path)
    console = _console(stderr=as_json)
    rows = [[check["verdict"], check["name"], check["subject"], check["seen"]] for check in report["checks"]]
    show(console, ("verdict", "check", "of", "seen"), rows, 0)
    failed = [f"{check['name']} of {check['subject']}" for check in report["checks"] if check["verdict"] == "failed"]
    said = f"{len(failed)} checks failed: {', '.join(failed)}." if failed else f"All {len(rows)} checks passed."
    if skipped := sum(check["verdict"] == "skipped" for check in report["checks"]):
        said = (
            said.replace(f"All {len(rows)} checks", f"{len(rows) - skipped} checks") + f" {skipped} could not be made."
        )
    if report["interrupted"]:
        said = f"Interrupted. {said}"
    if report["acceptance"] != "whole":
        said += " Only one of the two acceptance documents was given: this is no acceptance."
    console.print(f"{said} Report: {path}, {beside}", markup=False, soft_wrap=True)
    if as_json:
        print(json.dumps(record.summary(report, path), ensure_ascii=False, default=str), flush=True)


def _tell_parity(parity: Parity, *, as_json: bool) -> None:
    from worker.operate.verify.told import show

    console = _console(stderr=as_json)
    rows = [[row.verdict, row.what, row.subject, row.a, row.b, row.bound] for row in parity.rows]
    show(console, ("verdict", "what", "of", "A", "B", "bound"), rows, 0)
    console.print(f"{len(parity.differences)} differences in {len(rows)} rows.", markup=False)
    for side, failed in parity.failed.items():
        if failed:
            console.print(
                f"Run {side.upper()} failed its own checks: {', '.join(failed)}.", markup=False, soft_wrap=True
            )
    if as_json:
        print(json.dumps(parity.told(), ensure_ascii=False), flush=True)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)
