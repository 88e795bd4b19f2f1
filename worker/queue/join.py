"""Joins the channel of the wake-ups and leaves it, to know that Realtime lets us; nothing is heard meanwhile.

By websockets alone: the package `realtime` would add 10 MB to every worker for its probe.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

from worker.errors import Unavailable
from worker.pipeline.probe import refused, unreachable
from worker.queue.broadcast import TOPIC

_SETTINGS = "SUPABASE_URL and SUPABASE_SECRET_KEY"


async def join_and_leave(supabase_url: str, secret_key: str) -> None:
    """Open a channel as wake-ups do, and leave; the caller bounds the time.

    Raises Misconfigured for a refused key, Unavailable when nobody answers or the join is refused.
    """
    # In a thread: it takes 40 ms, and most workers need it for this alone.
    connecting = await asyncio.to_thread(_websockets)
    base = supabase_url.rstrip("/").removeprefix("http")
    url = f"ws{base}/realtime/v1/websocket?apikey={quote(secret_key)}&vsn=1.0.0"
    from websockets.exceptions import InvalidStatus, WebSocketException

    try:
        async with connecting.connect(url, open_timeout=None, close_timeout=0.5, max_size=1 << 20) as socket:
            await socket.send(_join_message(secret_key))
            while (said := _reply(await socket.recv())) is None:
                pass
    except InvalidStatus as exc:
        refusal = refused(exc.response.status_code, service="Realtime", settings=_SETTINGS)
        raise refusal or unreachable("Realtime", _SETTINGS, "no websocket") from None  # it quotes the URL
    except (OSError, WebSocketException, ValueError) as exc:
        raise unreachable("Realtime", _SETTINGS, type(exc).__name__) from None
    if said != "ok":
        raise Unavailable(
            "join_refused",
            f"Realtime does not let the worker join its channel. Check {_SETTINGS}, and that the migrations are "
            "applied.",
        )


def _websockets() -> Any:
    from websockets.asyncio import client

    return client


def _join_message(key: str) -> str:
    config = {
        "private": True,
        "broadcast": {"ack": False, "self": False},
        "presence": {"key": "", "enabled": False},
        "postgres_changes": [],
    }
    payload = {"access_token": key, "config": config}
    return json.dumps(
        {"topic": f"realtime:{TOPIC}", "event": "phx_join", "ref": "1", "join_ref": "1", "payload": payload}
    )


def _reply(frame: str | bytes) -> str | None:
    """Return how a join was answered; None for what is another message."""
    message = json.loads(frame)
    if not isinstance(message, dict) or message.get("event") != "phx_reply" or message.get("ref") != "1":
        return None
    return str(message.get("payload", {}).get("status"))
