"""`scripts/bench`: how long an upload takes to become searchable, and how many chunks a second; asserts nothing."""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from pathlib import Path

import click

from local import interrupt, samples
from local.demo.client import Client, ClientError, connected
from local.demo.files import Upload, uploads
from local.errors import StackError
from local.install import MODELS
from local.stack import Stack
from local.worker_process import working
from worker.pipeline.embed.local import LocalEmbedder

TOKENS = 2000
_LOOK_MS = 10
_WORDS = (
    "anchor", "basin", "berth", "buoy", "cable", "channel", "crane", "deck", "dock", "ferry", "fog", "gauge", "harbour",
    "island", "keel", "lamp", "launch", "mast", "mooring", "pier", "pilot", "port", "quay", "radar", "rope", "rudder",
    "sail", "ship", "signal", "sound", "storm", "swell", "tide", "tower", "tug", "vessel", "watch", "wave", "wind",
)  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("pdfs", nargs=-1, type=click.Path(exists=True, dir_okay=False, readable=True, path_type=Path))
@click.option("--runs", type=click.IntRange(min=1), default=20, show_default=True, help="Markdown files, one by one.")
def main(pdfs: tuple[Path, ...], runs: int) -> None:
    """Measure a fresh local stack with one idle worker."""
    try:
        sys.exit(interrupt.run(_measure(pdfs, runs)))
    except (StackError, ClientError) as error:
        raise click.ClickException(str(error)) from error


async def _measure(pdfs: tuple[Path, ...], runs: int) -> int:
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        directory = Path(name)
        embedder = LocalEmbedder(MODELS)
        notes = [_note(directory / f"note-{number}.md", number, embedder) for number in range(runs + 1)]
        await embedder.aclose()
        chosen = pdfs or tuple(path for path in samples.write(directory / "samples") if path.suffix == ".pdf")
        files = uploads([*notes, *chosen], directory / "links")
        async with (
            Stack(directory / "stack") as stack,
            working(stack, directory / "worker.log"),
            connected(stack, directory / "links", directory / "client.log") as client,
        ):
            await client.ask("owner", "signUp", email="bench@example.com")
            # The first one opens connections and warms caches; it is not counted.
            timings = [await _upload(client, note) for note in files[: len(notes)]][1:]
            _print_latency(timings)
            for pdf in files[len(notes) :]:
                await _print_rate(client, pdf, await _upload(client, pdf))
    return 0


async def _upload(client: Client, file: Upload) -> dict[str, float]:
    given = {"path": str(file.path), "name": file.name, "contentType": file.content_type}
    took: dict[str, float] = await client.ask("owner", "uploadToReady", every=_LOOK_MS, **given)
    return took


def _print_latency(timings: list[dict[str, float]]) -> None:
    ready = sorted(timing["ready"] for timing in timings)
    uploaded = statistics.median(timing["uploaded"] for timing in timings)
    print(
        f"A {TOKENS:,}-token Markdown file, idle, from upload() to ready: p50 {statistics.median(ready):.0f} ms, "
        f"max {ready[-1]:.0f} ms over {len(ready)} runs (upload() itself: p50 {uploaded:.0f} ms; "
        f"looked at every {_LOOK_MS} ms through REST)",
        flush=True,
    )


async def _print_rate(client: Client, pdf: Upload, took: dict[str, float]) -> None:
    documents = (await client.ask("owner", "progress"))["documents"]
    (document,) = (row for row in documents if row["id"] == took["id"])
    seconds = took["ready"] / 1000
    print(
        f"{pdf.name}: {document['page_count']} pages, {document['chunk_count']} chunks in {seconds:.1f} s, "
        f"{document['chunk_count'] / seconds:.0f} chunks a second",
        flush=True,
    )


def _note(path: Path, number: int, embedder: LocalEmbedder) -> Path:
    """Write a Markdown file of TOKENS tokens that no other run has, so that nothing is already embedded."""
    chance = random.Random(number)
    sections = 0
    lines: list[str] = []
    while embedder.count_tokens(["\n".join(lines)])[0] < TOKENS:
        if len(lines) % 8 == 0:
            sections += 1
            lines.append(f"\n## Section {sections} of note {number}\n")
        lines.append(" ".join(chance.choices(_WORDS, k=18)).capitalize() + ".")
    path.write_text(f"# Note {number}\n" + "\n".join(lines) + "\n")
    return path


if __name__ == "__main__":
    main(prog_name="scripts/bench")
