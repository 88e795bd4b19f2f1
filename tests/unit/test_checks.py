"""The linters and type checks, as tests: nothing is green while one of them complains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from local import deno

_BIN = Path(sys.executable).parent
_TYPESCRIPT = sorted(
    str(path.relative_to(deno.REPOSITORY))
    for folder in ("local", "supabase", "tests")
    for path in (deno.REPOSITORY / folder).rglob("*.ts")
)
CHECKS = {
    "ruff check": [str(_BIN / "ruff"), "check", "."],
    "ruff format": [str(_BIN / "ruff"), "format", "--check", "."],
    "mypy": [sys.executable, "-m", "mypy"],
    "import contracts": [str(_BIN / "lint-imports")],
    "deno check": [deno.executable(), "check", "--config", "deno.json", *_TYPESCRIPT],
    "deno lint": [deno.executable(), "lint", "--config", "deno.json", *_TYPESCRIPT],
    "deno fmt": [deno.executable(), "fmt", "--check", "--config", "deno.json", *_TYPESCRIPT],
}


# A cold mypy reads all of its stubs first.
@pytest.mark.timeout(400)
@pytest.mark.parametrize("check", CHECKS)
def test_the_code_passes(check: str) -> None:
    done = subprocess.run(
        CHECKS[check], cwd=deno.REPOSITORY, env=os.environ | deno.environment(), capture_output=True, text=True,
        timeout=380, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
