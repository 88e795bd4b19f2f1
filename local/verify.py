"""`python -m local.verify`: what scripts/verify runs: a fresh stack with a worker, and `sluice verify run` on it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import click

from local import child, deno, interrupt
from local.embeddings_process import embedding
from local.errors import StackError
from local.install import MODELS
from local.stack import Stack
from local.worker_process import working
from worker.operate.verify.documents import StandIn, identify

# What a clean-up may take after Ctrl-C, before the stack is taken away from under it.
_STOP_SECONDS = 30


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line; the rest to stderr.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where the report is written.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=900, show_default=True, help="Until they are searchable."
)
def main(files: tuple[Path, ...], as_json: bool, out: Path | None, timeout: float) -> None:
    """Prove a fresh local Supabase and a worker with FILES, the acceptance documents."""
    try:
        identify(files)  # before anything is started
    except StandIn as exc:
        raise click.UsageError(str(exc)) from exc
    options = ["--timeout", str(timeout), *(["--json"] if as_json else []), *(["--out", str(out)] if out else [])]
    try:
        sys.exit(interrupt.run(_verify([str(file) for file in files], options)))
    except StackError as error:
        raise click.ClickException(str(error)) from error


async def _verify(files: list[str], options: list[str]) -> int:
    async with AsyncExitStack() as started:
        directory = Path(tempfile.mkdtemp(prefix="sluice-verify-"))
        started.callback(shutil.rmtree, directory, ignore_errors=True)
        # For our children: the Supabase CLI leaves files in its temporary directory.
        temporary = directory / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        if sha := git_sha():
            os.environ["SLUICE_GIT_SHA"] = sha
        print("Starting Postgres, the local Supabase and a worker …", file=sys.stderr, flush=True)
        url = await started.enter_async_context(embedding(directory / "embeddings.log"))
        stack = await started.enter_async_context(
            Stack(directory / "stack", durable=False, functions={"SLUICE_EMBEDDINGS_URL": url})
        )
        log = directory / "worker.log"
        worker = await started.enter_async_context(working(stack, log))
        run = asyncio.ensure_future(_run(stack, log, files, options))
        ended = asyncio.ensure_future(worker.ended())
        try:
            await asyncio.wait({run, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                await ended
            return await run
        finally:
            for task in (run, ended):
                task.cancel()
            await asyncio.gather(run, ended, return_exceptions=True)


async def _run(stack: Stack, log: Path, files: list[str], options: list[str]) -> int:
    """Let the command itself do it, as the owner of the database, and return its exit status."""
    ours = {"SLUICE_MODEL_DIR": str(MODELS), "DATABASE_URL": stack.database_url, "PYTHONPATH": str(deno.REPOSITORY)}
    # A session of its own: Ctrl-C is for us, and the run then cleans up before the stack goes.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "worker", "verify", "run", "--target", "local", "--worker-log", str(log),
        *options, *files, env={**os.environ, **stack.environment(), **ours}, stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
            await child.gone(process, _STOP_SECONDS)


def git_sha() -> str | None:
    """Return the commit of this clone, or None where it is none."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=deno.REPOSITORY, capture_output=True, text=True, check=False, timeout=10
    )
    return done.stdout.strip() or None


if __name__ == "__main__":
    main(prog_name="scripts/verify")
