"""Notices every connection of the test process beyond loopback, and refuses it.

An audit hook sees what patched functions miss (C code, imported names). It cannot be removed, so there is one.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import Any

refused: list[str] = []
allowed = False
"""True while a test marked `live` runs."""


class BeyondLoopback(OSError):
    """The test process tried to leave the machine."""


def install() -> None:
    """Refuse connections and look-ups beyond loopback from now on."""
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = arguments[1]
        # A path or nothing at all is not the network.
        host = address[0] if isinstance(address, tuple) else None
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode(errors="replace")
    if allowed or not host or _is_loopback(host):
        return
    refused.append(f"{event} {host}")
    raise BeyondLoopback(f"a test tried to reach {host}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
