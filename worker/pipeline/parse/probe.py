"""What the sandbox really refuses here, tried from inside; `doctor` and the tests read it."""

import contextlib
import os
import socket


def probe(mode: str) -> dict[str, object]:
    """Return the mode and what could still be done: all of it should be False."""
    return {
        "mode": mode,
        "connects": _connects(),
        "opens_files": _works(lambda: os.close(os.open(__file__, os.O_RDONLY))),
        "reads_parent": _works(lambda: os.close(os.open(f"/proc/{os.getppid()}/environ", os.O_RDONLY))),
        "starts_processes": _works(lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)),
        "environment": sorted(os.environ),
    }


def _connects() -> bool:
    """Send a datagram into the void: a machine with any route lets it go, an empty namespace does not."""

    def send() -> None:
        with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as made:
            made.connect(("127.0.0.1", 9))
            made.send(b"")

    return _works(send)


def _works(attempt: object) -> bool:
    assert callable(attempt)
    try:
        attempt()
    except OSError:
        return False
    return True
