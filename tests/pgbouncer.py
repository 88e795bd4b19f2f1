"""A real PgBouncer on loopback, where the machine has one: `apt-get install pgbouncer` on Debian."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
MISSING = "PgBouncer is not installed here, so nothing about poolers was proven: apt-get install pgbouncer"


@contextlib.contextmanager
def pgbouncer(
    directory: Path, target: str, *, mode: str, backends: int, tls: tuple[Path, Path] | None = None
) -> Iterator[str]:
    """Run a pooler before the database URL `target`, and give the URL that leads through it.

    `mode` is "transaction" or "session"; at most `backends` connections go to Postgres. With `tls`, a certificate
    and its key in `directory`, clients must encrypt. As root it runs as nobody, because PgBouncer refuses root;
    `directory` must be reachable for that user.
    """
    assert PROGRAM is not None
    parts = urlsplit(target)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    users, settings = directory / "users.txt", directory / "pgbouncer.ini"
    users.write_text(f'"{parts.username}" "{parts.password}"\n')
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={parts.port}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = scram-sha-256\nauth_file = {users}\n"
        f"pool_mode = {mode}\ndefault_pool_size = {backends}\nserver_login_retry = 1\n"
        + (
            f"client_tls_sslmode = require\nclient_tls_cert_file = {tls[0]}\nclient_tls_key_file = {tls[1]}\n"
            if tls
            else ""
        )
    )
    user = "nobody" if os.geteuid() == 0 else None
    if user is not None:
        for path in (users, settings, *(tls or ())):
            shutil.chown(path, user)
    process = subprocess.Popen(
        [PROGRAM, "-q", str(settings)], user=user, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait(process, port)
        yield target.replace(f":{parts.port}/", f":{port}/")
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(1000):
        assert process.poll() is None, "PgBouncer ended at its start"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.01):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
    raise AssertionError("PgBouncer does not listen")
