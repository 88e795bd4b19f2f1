"""Builds the image with each of its extras in a folder, without Docker, and lets its worker work.

    python -m tests.image [EXTRAS]…

EXTRAS is what SLUICE_EXTRAS may be, as "llama-cloud local"; without any, all that are offered. First the locks are
tried against the Python of the base image, and each file that the wheel is made of is left out once. Then every
image is built, its packages are checked, and its worker starts on a fresh local stack, as the image's user and with
the blueprint's values; with the local parser and model it takes two documents in. Exit status: 0 when all held.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from local import interrupt, samples
from local.demo.client import connected
from local.demo.files import uploads
from local.deno import REPOSITORY
from local.stack import Stack
from tests.image import build, dockerfile
from tests.image.build import BuildError, Image
from tests.image.place import place

OFFERED = ("local", "llama-parse", "llama-cloud", "llama-cloud local")
MACHINES = ("x86_64", "aarch64")
TEXT = (REPOSITORY / "Dockerfile").read_text()
_SECONDS = 60


class Failed(Exception):
    """Something did not hold; the message says what."""


def prove_locks() -> None:
    """Ask the registry for a wheel of every locked package, for the base image's Python on each kind of machine."""
    base = dockerfile.read(TEXT).arguments["BASE"]
    python = ".".join(base.removeprefix("python:").split(".")[:2])
    for lock in ("base", "local", "llama-parse", "llama-cloud"):
        for machine in MACHINES:
            done = subprocess.run(
                [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed",
                 "--disable-pip-version-check", "--only-binary", ":all:", "--python-version", python,
                 "--platform", f"manylinux_2_28_{machine}", "--platform", f"manylinux2014_{machine}",
                 "--target", "nowhere", "--require-hashes", "-r", f"requirements/{lock}.txt"],
                cwd=REPOSITORY, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode != 0:
                raise Failed(f"requirements/{lock}.txt, Python {python}, {machine}: {done.stderr[-1000:]}")
    print(f"every locked package has a wheel for Python {python} on {' and '.join(MACHINES)}", flush=True)


def prove_that_what_is_forgotten_shows() -> None:
    """Leave each file that the wheel is made of out of the Dockerfile once; every build must end for it."""
    # Without the packages, which take longest, the wheel can be made and installed, but not run.
    short = _without(TEXT, " \\\n    && /opt/sluice/bin/sluice --version")
    short = short.replace('-r requirements/base.txt "$@"', "-r requirements/build.txt")
    if (complaint := _complaint(short)) is not None:
        raise Failed(f"A build with everything ends too: {complaint}")
    for file, text in (
        ("requirements", _without(short, "COPY requirements requirements\n")),
        ("pyproject.toml", _without(short, "pyproject.toml ")),
        ("README.md", _without(short, " README.md")),
        ("supabase/migrations", _without(short, "COPY supabase/migrations supabase/migrations\n")),
        # A wheel without a package is a good one for hatchling; the command that it installs is not.
        ("worker", _without(TEXT, "COPY worker worker\n")),
    ):
        complaint = _complaint(text)
        if complaint is None:
            raise Failed(f"Nothing ended a build without {file}.")
        print(f"without {file} the build ends: {complaint.splitlines()[-1][:100]}", flush=True)


def _without(text: str, part: str) -> str:
    if part not in text:
        raise Failed(f"The Dockerfile has no {part!r} to leave out.")
    return text.replace(part, "")


def _complaint(text: str) -> str | None:
    try:
        with place() as folder:
            build.build(text, REPOSITORY, folder, {"SLUICE_EXTRAS": ""})
    except BuildError as error:
        return str(error).strip()
    return None


async def prove_image(extras: str, stack: Stack, directory: Path) -> None:
    """Build the image with these extras, and let its worker start on the stack; with `local`, work too."""
    began = time.monotonic()
    with place() as folder, place() as temporary:
        image = build.build(TEXT, REPOSITORY, folder, {"SLUICE_EXTRAS": extras})
        took = time.monotonic() - began
        _check_packages(image, temporary)
        migrations = _said(image, temporary, "migrations", "check", **stack.environment())
        settings = _settings(extras)
        provider = ("openai", "text-embedding-3-small", "1536")
        if settings["SLUICE_EMBEDDER"] == "openai":
            operator = stack.environment() | {"DATABASE_URL": stack.database_url}
            _said(image, temporary, "models", "add", *provider, "--activate", **operator)
        async with _working(image, temporary, {**stack.environment(), **settings}) as started:
            worked = await _take_in(stack, directory) if settings["SLUICE_EMBEDDER"] == "local" else ""
        size = sum(path.stat().st_size for path in image.root.rglob("*") if path.is_file() and not path.is_symlink())
        print(
            f"{extras}: built in {took:.0f} s, {size / 1e6:.0f} MB beside the base; {migrations.strip()} "
            f"Started with {started}.{worked}",
            flush=True,
        )


def _settings(extras: str) -> dict[str, str]:
    """Return the blueprint's values, with the providers that go with these extras."""
    (group,) = yaml.safe_load((REPOSITORY / "render.yaml").read_text())["envVarGroups"]
    values = {one["key"]: str(one["value"]) for one in group["envVars"]}
    parser = next((name for name in ("llama-parse", "llama-cloud") if name in extras), "local")
    # A remote parser needs no local model; beside the local extra it reads what is cheap by itself.
    values |= {"SLUICE_PARSER": parser, "SLUICE_EMBEDDER": "local" if extras == "local" else "openai"}
    values |= {"SLUICE_PARSE_CHEAP_FIRST": str("local" in extras and parser != "local")}
    return values | {
        "LLAMA_CLOUD_API_KEY": "llx-none",
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": "http://127.0.0.1:1",
    }


def _check_packages(image: Image, temporary: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", image.root / "opt/sluice/bin/python", "check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failed(f"Packages do not fit together: {done.stdout}")
    _said(image, temporary, "--version")


def _said(image: Image, temporary: Path, *arguments: str, **environment: str) -> str:
    done = image.run(*arguments, temporary=temporary, environment=environment)
    if done.returncode != 0:
        raise Failed(f"sluice {' '.join(arguments)} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


@asynccontextmanager
async def _working(image: Image, temporary: Path, environment: dict[str, str]) -> AsyncIterator[str]:
    """Run the image's worker until the block ends, then drain it; gives what it says of itself once it has started."""
    argv, options = image.start(temporary=temporary, environment=environment)
    process = await asyncio.create_subprocess_exec(
        *argv, **options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    log = process.stdout
    draining = None
    try:
        yield await asyncio.wait_for(_started(log), _SECONDS)
        draining = asyncio.create_task(log.read())
    finally:
        if process.returncode is None:
            process.terminate()
        draining = draining or asyncio.create_task(log.read())
        try:
            status = await asyncio.wait_for(process.wait(), _SECONDS)
        except TimeoutError:
            process.kill()
            status = await process.wait()
        said = (await draining).decode(errors="replace")
    left = list(temporary.iterdir())
    if status != 0 or left:
        raise Failed(f"The worker ended with {status} and left {left}:\n{said[-2000:]}")


async def _started(log: asyncio.StreamReader) -> str:
    said = []
    while line := (await log.readline()).decode(errors="replace"):
        said.append(line)
        if "worker started" in line:
            parts = (re.search(rf'"{name}": "([^"]*)"', line) for name in ("parser", "embedder"))
            return ", ".join(part[1] for part in parts if part)
    raise Failed(f"The worker did not start:\n{''.join(said)[-2000:]}")


async def _take_in(stack: Stack, directory: Path) -> str:
    chosen = [path for path in samples.write(directory / "samples") if path.suffix in (".pdf", ".md")][:2]
    async with connected(stack, directory / "links", directory / "client.log") as client:
        await client.ask("owner", "signUp", email="image@example.com")
        for file in uploads(chosen, directory / "links"):
            given = {"path": str(file.path), "name": file.name, "contentType": file.content_type}
            await client.ask("owner", "uploadToReady", every=50, **given)
        documents = (await client.ask("owner", "progress"))["documents"]
    chunks = sum(document["chunk_count"] for document in documents)
    if len(documents) != len(chosen) or not chunks:
        raise Failed(f"Of {len(chosen)} documents there are {documents}.")
    return f" {len(documents)} documents taken in, {chunks} chunks."


async def _prove(wanted: tuple[str, ...]) -> int:
    try:
        prove_locks()
        prove_that_what_is_forgotten_shows()
        for extras in wanted:
            with tempfile.TemporaryDirectory(prefix="sluice-prove-") as name:
                async with Stack(Path(name) / "stack", durable=False) as stack:
                    await prove_image(extras, stack, Path(name))
    except (Failed, BuildError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Prove the named extras, all that are offered without a name."""
    wanted = tuple(sys.argv[1:]) or OFFERED
    unknown = [extras for extras in wanted if extras not in OFFERED]
    if unknown:
        print(f"{', '.join(unknown)} is not offered; {', '.join(map(repr, OFFERED))} are.", file=sys.stderr)
        return 2
    return interrupt.run(_prove(wanted))


if __name__ == "__main__":
    sys.exit(main())
