"""Runs the contract tests of each extra in a fresh environment made from its lock, in a temporary folder.

    python -m tests.extras [EXTRA…]

The two cannot be installed together, so neither is in the tests' own environment. Exit status: 0 when all passed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {"llama-parse": "test_llama_parse.py", "llama-cloud": "test_llama_cloud.py"}
_PIP = ("-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--require-hashes")


def prove(extra: str) -> int:
    """Install the extra's lock and the test tools', by hash, and run its tests; return their exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"sluice-{extra}-") as directory:
        python = Path(directory) / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        locks = [f"{ROOT}/requirements/{name}.txt" for name in (extra, "test")]
        subprocess.run([python, *_PIP, *(part for lock in locks for part in ("-r", lock))], check=True)
        subprocess.run([python, "-m", "pip", "check", "--disable-pip-version-check"], check=True)
        installed = time.monotonic() - began
        here = Path(__file__).parent
        status = subprocess.run(
            # The tests' own conftest.py wants Postgres, which these do not.
            [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c",
             ROOT / "pyproject.toml", "--confcutdir", here, here / EXTRAS[extra]],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
        ).returncode  # fmt: skip
    print(
        f"{extra}: installed in {installed:.0f} s, {'passed' if status == 0 else f'exit status {status}'}", flush=True
    )
    return status


def main() -> int:
    """Prove the named extras, all of them without a name."""
    wanted = sys.argv[1:] or list(EXTRAS)
    unknown = [extra for extra in wanted if extra not in EXTRAS]
    if unknown:
        print(f"There is no extra {', '.join(unknown)}; there are {', '.join(EXTRAS)}.", file=sys.stderr)
        return 2
    return max([prove(extra) for extra in wanted])


if __name__ == "__main__":
    sys.exit(main())
