"""`python -m local.develop`: what scripts/dev runs, a stack that is kept and a worker beside it."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from local import interrupt
from local.embeddings_process import embedding
from local.errors import StackError
from local.session import described, until_one_ends
from local.stack import DEFAULT_DIRECTORY, DEFAULT_PORT, Stack
from local.worker_process import working


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True, help="0: a free one.")
@click.option("--directory", type=click.Path(file_okay=False, path_type=Path), default=DEFAULT_DIRECTORY)
def main(port: int, directory: Path) -> None:
    """Start the local Supabase and a worker, print URL and keys, and end both on Ctrl-C."""
    try:
        sys.exit(interrupt.run(_develop(port, directory)))
    except StackError as error:
        raise click.ClickException(str(error)) from error


async def _develop(port: int, directory: Path) -> int:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with (
        embedding(directory / "embeddings.log") as url,
        Stack(directory, port=port, functions={"SLUICE_EMBEDDINGS_URL": url}) as stack,
    ):
        click.echo(f"The local Supabase is up, and a worker beside it. Ctrl-C ends both.\n\n{described(stack)}\n")
        async with working(stack) as worker:
            await until_one_ends(stack, worker)
    return 0


if __name__ == "__main__":
    main(prog_name="scripts/dev")
