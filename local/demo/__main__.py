"""`python -m local.demo`: what scripts/demo runs."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path

import click
from rich.console import Console

from local import interrupt, samples
from local.demo.client import ClientError, connected
from local.demo.files import uploads
from local.demo.run import Demo
from local.embeddings_process import embedding
from local.errors import StackError
from local.session import described, until_one_ends
from local.stack import Stack
from local.worker_process import Worker, working
from worker.errors import IngestError


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option("--ask", "questions", multiple=True, metavar="TEXT", help="Ask this once all is searchable; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line; the rest to stderr.")
@click.option("--keep", is_flag=True, help="Leave stack and worker up, and print URL and keys, until Ctrl-C.")
@click.option("--timeout", type=click.FloatRange(min=1), default=1800, show_default=True, help="Seconds for all files.")
def main(files: tuple[Path, ...], questions: tuple[str, ...], as_json: bool, keep: bool, timeout: float) -> None:
    """Upload FILES (or samples) to a fresh local Supabase, watch them become searchable, and ask questions."""
    console = Console(stderr=as_json, highlight=False)
    try:
        sys.exit(interrupt.run(_demo(files, questions, console, as_json=as_json, keep=keep, timeout=timeout)))
    except (StackError, ClientError) as error:
        raise click.ClickException(str(error)) from error
    except IngestError as error:
        raise click.ClickException(error.public_message) from error


async def _demo(
    files: tuple[Path, ...], questions: tuple[str, ...], console: Console, *, as_json: bool, keep: bool, timeout: float
) -> int:
    began = time.monotonic()
    async with AsyncExitStack() as started:
        directory = Path(tempfile.mkdtemp(prefix="sluice-demo-"))
        started.callback(shutil.rmtree, directory, ignore_errors=True)
        # For our children: the Supabase CLI leaves files in its temporary directory.
        os.environ["TMPDIR"] = str(_made(directory / "tmp"))
        log = directory / "worker.log"
        links = directory / "uploads"
        ours = uploads(files or samples.write(directory / "samples"), links)
        console.print("Starting Postgres, the local Supabase and a worker …")
        url = await started.enter_async_context(embedding(directory / "embeddings.log"))
        stack = await started.enter_async_context(
            Stack(directory / "stack", durable=False, functions={"SLUICE_EMBEDDINGS_URL": url})
        )
        worker = await started.enter_async_context(working(stack, log))
        client = await started.enter_async_context(connected(stack, links, directory / "client.log"))

        demo = Demo(stack, worker, client, console)
        demo.report.start_seconds = round(time.monotonic() - began, 2)
        try:
            await demo.run(ours, questions or None, timeout)
        except (StackError, ClientError, IngestError) as error:
            demo.report.error = error.public_message if isinstance(error, IngestError) else str(error)
            console.print(f"Error: {demo.report.error}", markup=False, soft_wrap=True)
        if as_json:
            print(json.dumps(demo.report.as_json(), ensure_ascii=False), flush=True)
        status = 0 if demo.report.good else 1
        if keep:
            await _keep(stack, worker, log, console)
        return status


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def _keep(stack: Stack, worker: Worker, log: Path, console: Console) -> None:
    facts = f"{described(stack)}\n  {'worker log':<26} {log}"
    console.print("\nStack and worker stay up. Ctrl-C ends both and removes what they keep.\n")
    console.print(facts, markup=False, soft_wrap=True)
    await until_one_ends(stack, worker)


if __name__ == "__main__":
    main(prog_name="scripts/demo")
