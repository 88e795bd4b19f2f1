"""The Deno runtime of the stack: where it is, where it caches, and the environment its programs get.

Deno comes from its wheel. Its cache is `.sluice/deno` in the repository unless DENO_DIR names another
one, so that a fresh clone downloads what deno.lock pins once and every later run works offline.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from local.errors import StackError

REPOSITORY = Path(__file__).resolve().parent.parent
CLI_VERSION = "3.1.0"
# What a child keeps of our environment: enough to find its home, a proxy and its certificates, and no secret.
_KEPT = (
    "HOME", "PATH", "TMPDIR", "LANG", "USER", "NPM_CONFIG_REGISTRY", "DENO_CERT", "DENO_TLS_CA_STORE", "SSL_CERT_FILE",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
)  # fmt: skip


def executable() -> str:
    """Return the path of Deno's binary.

    Raises StackError where the wheel is missing.
    """
    beside = Path(sys.executable).parent / ("deno.exe" if os.name == "nt" else "deno")
    if beside.exists():
        return str(beside)
    try:
        import deno  # type: ignore[import-untyped]

        return str(deno.find_deno_bin())
    except (ImportError, FileNotFoundError) as exc:
        raise StackError("Deno is not installed here. Install requirements/stack.txt, then try again.") from exc


def cache_directory() -> Path:
    """Return where Deno keeps modules and packages."""
    return Path(os.environ.get("DENO_DIR") or REPOSITORY / ".sluice" / "deno").resolve()


def environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a child: nothing of ours but what it needs to run, then `extra`."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    fixed = {"DENO_DIR": str(cache_directory()), "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    return kept | fixed | (extra or {})


def command(script: Path, *flags: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command line that runs `script` with the locked packages and only the permissions in `flags`."""
    config = str(REPOSITORY / "deno.json")
    return [executable(), "run", "--quiet", "--no-prompt", "--config", config, *flags, str(script), *arguments]


def run(script: Path, *flags: str, timeout: float = 300) -> str:
    """Run a program to its end and return what it printed.

    Raises StackError with its last words when it fails. The first run downloads packages, hence the timeout.
    """
    return _finish(command(script, *flags), f"{script.name} failed", timeout)


def supabase_cli() -> Path:
    """Return the path of the Supabase CLI's binary, fetching it first where it is not cached.

    The binary is taken from its package for this platform. The `supabase` package only starts it, and
    resolving that one asks for the packages of all eight platforms, which fails where one is missing.
    """
    package = _cli_package()
    name = "supabase.exe" if os.name == "nt" else "supabase"
    found = _cached(package, name)
    if found is None:
        # The lock holds the checksum for Linux on x86-64; elsewhere the exact version has to do.
        locked = () if package == "@supabase/cli-linux-x64" else ("--no-lock",)
        specifier = f"npm:{package}@{CLI_VERSION}"
        config = str(REPOSITORY / "deno.json")
        argv = [executable(), "cache", "--quiet", "--config", config, *locked, specifier]
        _finish(argv, f"The Supabase CLI {CLI_VERSION} could not be installed", 600)
        found = _cached(package, name)
    if found is None:
        raise StackError(
            f"The package {package} {CLI_VERSION} holds no binary. Remove {cache_directory()} and try again."
        )
    return found


def _cached(package: str, name: str) -> Path | None:
    return next(cache_directory().glob(f"npm/*/{package}/{CLI_VERSION}/bin/{name}"), None)


def _cli_package() -> str:
    system = {"Linux": "linux", "Darwin": "darwin", "Windows": "windows"}.get(platform.system())
    machine = {"x86_64": "x64", "AMD64": "x64", "arm64": "arm64", "aarch64": "arm64"}.get(platform.machine())
    if system is None or machine is None:
        raise StackError(f"The Supabase CLI has no package for {platform.system()} on {platform.machine()}.")
    musl = "-musl" if system == "linux" and platform.libc_ver()[0] != "glibc" else ""
    return f"@supabase/cli-{system}-{machine}{musl}"


def _finish(argv: list[str], failure: str, timeout: float) -> str:
    try:
        done = subprocess.run(
            argv, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise StackError(f"{failure}: it took longer than {timeout:.0f} s. Check the network and try again.") from exc
    if done.returncode != 0:
        raise StackError(f"{failure} with exit status {done.returncode}:\n{done.stderr[-2000:].strip()}")
    return done.stdout
