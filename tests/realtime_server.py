"""A double of Supabase Realtime: Phoenix channels in protocol 1.0.0 on loopback, with every way to die.

It broadcasts what the database inserts into realtime.messages, as the real one does, and asks for the
secret key, for private joins and for a topic. Its frames are those that were captured from the real one.
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

_TRIGGER = """
create function realtime.tell_the_double() returns trigger language plpgsql as $$
begin
  perform pg_notify('realtime_double', json_build_object(
    'topic', new.topic, 'event', new.event, 'payload', new.payload, 'id', new.id, 'private', new.private)::text);
  return null;
end $$;
create trigger tell_the_double after insert on realtime.messages
  for each row execute function realtime.tell_the_double();
"""


class RealtimeServer:
    """Answers on one port from `start` to `stop`; a test sets what goes wrong."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.port = 0
        self.joins = 0
        """How many joins were accepted."""
        self.refusals = 0
        self.refuse: str | None = None
        """The reason with which joins are refused, if they are."""
        self.mute = False
        """Joins are accepted, and what the database broadcasts is not passed on."""
        self._server: Server | None = None
        self._joined: dict[ServerConnection, tuple[str, str]] = {}
        self._half_open: set[ServerConnection] = set()
        self._sending: set[asyncio.Future[None]] = set()

    @property
    def url(self) -> str:
        """The SUPABASE_URL with which it is reached."""
        return f"http://127.0.0.1:{self.port}"

    async def follow(self, admin: asyncpg.Connection) -> None:
        """Broadcast what is inserted into realtime.messages of this connection's database."""
        await admin.execute(_TRIGGER)
        await admin.add_listener("realtime_double", lambda _c, _p, _n, message: self._tell(json.loads(str(message))))

    async def start(self) -> None:
        """Listen; on the same port as before when it did before."""
        self._server = await serve(self._serve, "127.0.0.1", self.port, process_request=self._admit)
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Go away: every socket breaks, new ones are refused."""
        if self._server is not None:
            self.kill()
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def close(self) -> None:
        """Close every socket in order, as a server does that restarts."""
        for socket in list(self._joined):
            await socket.close(1001)

    def kill(self) -> None:
        """Break every socket."""
        for socket in [*self._joined, *self._half_open]:
            socket.transport.abort()

    def half_open(self) -> None:
        """Say nothing more on every socket and read nothing from it, without closing it."""
        for socket in list(self._joined):
            socket.transport.pause_reading()
            self._half_open.add(socket)
            del self._joined[socket]

    async def close_channels(self) -> None:
        """Close every channel and keep the sockets."""
        for socket, (topic, ref) in list(self._joined.items()):
            await self._send(socket, topic, "phx_close", {}, ref)

    async def expire_tokens(self) -> None:
        """Say that the token has expired, then close every channel."""
        for socket, (topic, _) in list(self._joined.items()):
            said = {
                "extension": "system",
                "status": "error",
                "message": "Token has expired 0 seconds ago",
                "channel": topic.partition(":")[2],
            }
            await self._send(socket, topic, "system", said, None)
        await self.close_channels()

    async def poison(self) -> None:
        """Send what the client cannot read: its reading task dies, and it says nothing of it."""
        for socket, (topic, _) in list(self._joined.items()):
            await self._send(socket, topic, "presence_state", {"someone": {"metas": [{"no": "reference"}]}}, None)

    def _admit(self, _connection: ServerConnection, request: Request) -> Response | None:
        parts = urlsplit(request.path)
        if parts.path != "/realtime/v1/websocket":
            return _connection.respond(HTTPStatus.NOT_FOUND, "")
        if parse_qs(parts.query).get("apikey") != [self.key]:
            return _connection.respond(HTTPStatus.UNAUTHORIZED, '{"error":"invalid key"}')
        return None

    async def _serve(self, socket: ServerConnection) -> None:
        try:
            async for text in socket:
                message = json.loads(text)
                topic, ref = message["topic"], message["ref"]
                if message["event"] == "phx_join":
                    await self._join(socket, topic, ref, message["payload"])
                elif message["event"] == "heartbeat" or message["event"] == "phx_leave":
                    await self._send(socket, topic, "phx_reply", {"status": "ok", "response": {}}, ref)
        except ConnectionClosed:
            pass
        finally:
            self._joined.pop(socket, None)
            self._half_open.discard(socket)

    async def _join(self, socket: ServerConnection, topic: str, ref: str, payload: dict[str, Any]) -> None:
        reason = self.refuse
        if payload.get("access_token") != self.key or not payload["config"]["private"]:
            reason = f"Unauthorized: You do not have permissions to read from this Channel topic: {topic}"
        if reason is not None:
            self.refusals += 1
            await self._send(socket, topic, "phx_reply", {"status": "error", "response": {"reason": reason}}, ref)
            return
        self.joins += 1
        self._joined[socket] = (topic, ref)
        await self._send(socket, topic, "phx_reply", {"status": "ok", "response": {"postgres_changes": []}}, ref)

    def _tell(self, row: dict[str, Any]) -> None:
        if self.mute or not row["private"]:
            return
        payload = {"event": row["event"], "payload": row["payload"], "type": "broadcast", "meta": {"id": row["id"]}}
        for socket, (topic, _) in list(self._joined.items()):
            if topic == f"realtime:{row['topic']}":
                task = asyncio.ensure_future(self._send(socket, topic, "broadcast", payload, None))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)

    async def _send(self, socket: ServerConnection, topic: str, event: str, payload: Any, ref: str | None) -> None:
        try:
            await socket.send(json.dumps({"topic": topic, "event": event, "payload": payload, "ref": ref}))
        except ConnectionClosed:
            self._joined.pop(socket, None)
