"""The three phases of the proof, by the same command: all local, a local worker elsewhere, and all remote.

    phase 1   worker and database here, directly
    phase 2   the worker here, everything else behind TLS: the API by a proxy, the database by PgBouncer
    phase 3   the worker beside its database, and only the proof comes through TLS and PgBouncer

Phases 2 and 3 run on a second stack on other ports. Each is compared with the first by `sluice verify compare`.
Prints one JSON object as the last line; exits with 0 when all checks passed and nothing differs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from local import deno
from local.embeddings_process import embedding
from local.install import MODELS
from local.stack import Stack
from local.verify import git_sha
from local.worker_process import working
from tests.pgbouncer import PROGRAM, pgbouncer
from tests.tls import Certificates, certificates, terminating
from tests.verifying import FOLDER, MISSING
from worker.operate.verify.documents import ACCEPTANCE

PHASES = ("all local", "local worker, other database", "all remote")


class Seen(Stack):
    """A stack whose workers are given other addresses than its own; `instead` holds the variables."""

    instead: dict[str, str]

    def environment(self) -> dict[str, str]:
        return super().environment() | getattr(self, "instead", {})


async def main() -> int:
    """Run the phases and return the exit status."""
    files = [FOLDER / known.name for known in ACCEPTANCE]
    if not all(file.is_file() for file in files):
        sys.exit(MISSING)
    with tempfile.TemporaryDirectory(prefix="sluice-phases-") as name:
        directory = Path(name)
        directory.chmod(0o755)  # PgBouncer runs as another user
        runs, parities = [], []
        async with AsyncExitStack() as started:
            url = await started.enter_async_context(embedding(directory / "embeddings.log"))
            first, second = [
                await started.enter_async_context(
                    Seen(directory / place, durable=False, functions={"SLUICE_EMBEDDINGS_URL": url})
                )
                for place in ("first", "second")
            ]
            far = await _far(second, directory, started)
            for number, (stack, worker, proof) in enumerate(
                ((first, {}, {}), (second, far["worker"], far["owner"]), (second, {}, far["owner"])), 1
            ):
                stack.instead = worker
                log, out = directory / f"worker-{number}.log", directory / f"phase-{number}.json"
                async with working(stack, log):
                    environment = stack.environment() | {"DATABASE_URL": stack.database_url} | proof
                    status, said = await _sluice(
                        environment, "run", "--json", "--out", out, "--worker-log", log, *files
                    )
                runs.append(_told(number, status, said, log))
                if number > 1:
                    status, parity = await _sluice({}, "compare", "--json", directory / "phase-1.json", out)
                    parities.append({"a": 1, "b": number, "exit": status, **_short(parity)})
    report = {"phases": runs, "parities": parities, "pgbouncer": PROGRAM is not None}
    print(json.dumps(report))
    return 0 if all(run["exit"] == 0 for run in runs) and all(parity["exit"] == 0 for parity in parities) else 1


async def _far(stack: Stack, directory: Path, started: AsyncExitStack) -> dict[str, dict[str, str]]:
    """Return what names the stack behind TLS, for its worker and for the proof."""
    made = certificates(directory)
    port = await started.enter_async_context(terminating(stack.server.port, made))
    # Both sides check the certificates: the API's by this variable, the database's by verify-full.
    common = {"SUPABASE_URL": f"https://localhost:{port}", "SSL_CERT_FILE": str(made.authority)}
    # A worker's transactions are short; the proof's login is another, and in the other mode.
    worker = _pooled(stack.worker_database_url, "transaction", directory / "pooled-worker", made, started)
    owner = _pooled(stack.database_url, "session", directory / "pooled-owner", made, started)
    return {"worker": common | {"DATABASE_URL": worker}, "owner": common | {"DATABASE_URL": owner}}


def _pooled(url: str, mode: str, directory: Path, made: Certificates, started: AsyncExitStack) -> str:
    if PROGRAM is None:
        return url
    directory.mkdir(mode=0o755)
    own = [directory / path.name for path in (made.certificate, made.key)]
    for source, copy in zip((made.certificate, made.key), own, strict=True):
        copy.write_bytes(source.read_bytes())
    pooled = started.enter_context(pgbouncer(directory, url, mode=mode, backends=10, tls=(own[0], own[1])))
    return f"{pooled.replace('127.0.0.1', 'localhost')}?sslmode=verify-full&sslrootcert={made.authority}"


async def _sluice(environment: dict[str, str], *arguments: object) -> tuple[int, dict[str, Any]]:
    ours = {
        "SLUICE_MODEL_DIR": str(MODELS), "PYTHONPATH": str(deno.REPOSITORY), "SLUICE_GIT_SHA": git_sha() or "unknown",
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "worker", "verify", *map(str, arguments),
        env=os.environ | environment | ours, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    said = out.decode().strip().rpartition("\n")[2]
    return process.returncode or 0, json.loads(said) if said.startswith("{") else {}


def _told(number: int, status: int, said: dict[str, Any], log: Path) -> dict[str, Any]:
    ways = [json.loads(line).get("way") for line in log.read_text().splitlines() if '"way"' in line]
    return {
        "phase": number, "name": PHASES[number - 1], "exit": status, "seconds": said.get("seconds"),
        "checks": len(said.get("checks", [])),
        "failed": [c for c in said.get("checks", []) if c["verdict"] != "passed"],
        "documents": {
            document["name"]: {
                "counts": document["counts"], "seconds": document["seconds"], "all": document["digests"]["all"],
            }
            for document in said.get("documents", [])
        },
        "woken_by": ways[-1] if ways else None,
    }  # fmt: skip


def _short(parity: dict[str, Any]) -> dict[str, Any]:
    rows = parity.get("rows", [])
    return {
        "differences": parity.get("differences"), "rows": len(rows),
        "not_same": [row for row in rows if row["verdict"] != "same"],
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
