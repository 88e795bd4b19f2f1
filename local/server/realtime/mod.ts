// Supabase Realtime as the clients know it, for the local stack: private and public channels, broadcasts from the
// database and from clients, and Postgres Changes, in both protocols, under /realtime/v1.
//
// Not here: presence, replays of what was missed, broadcasts over HTTP, and quotas.

import { connect } from "../storage/database.ts";
import { Followers, type Keys } from "./caller.ts";
import { Changes } from "./changes.ts";
import { type Hub, keyOf } from "./channel.ts";
import { Feed } from "./feed.ts";
import { protocol } from "./frames.ts";
import { Socket } from "./socket.ts";

export interface RealtimeOptions extends Keys {
  /** Of the role realtime_bridge. */
  databaseUrl: string;
}

export interface Realtime {
  fetch(request: Request): Promise<Response>;
  close(): Promise<void>;
}

export function createRealtime(options: RealtimeOptions): Realtime {
  const database = connect(options.databaseUrl, "realtime");
  const hub: Hub = {
    database,
    followers: new Followers(options),
    changes: new Changes(database),
    channels: new Map(),
  };
  const sockets = new Set<Socket>();
  const feed = new Feed(options.databaseUrl, {
    sent({ id, topic, event, private: isPrivate, payload }) {
      for (const channel of hub.channels.get(keyOf(topic, isPrivate)) ?? []) {
        channel.hear({ event, payload, meta: { id } });
      }
    },
    changed: (change) => hub.changes.changed(change),
    interrupted() {
      for (const socket of sockets) socket.close(1012, "messages may have been lost");
    },
  });

  return {
    async fetch(request) {
      const url = new URL(request.url);
      if (url.pathname !== "/realtime/v1/websocket") {
        return Response.json({ error: "Only /realtime/v1/websocket is served here." }, { status: 404 });
      }
      const follower = await hub.followers.ofKey(url.searchParams.get("apikey") ?? request.headers.get("x-api-key"));
      if (!follower) return Response.json({ error: "Invalid API key" }, { status: 401 });
      const speaks = protocol(url.searchParams.get("vsn"));
      if (!speaks) return Response.json({ error: "vsn must be 1.0.0 or 2.0.0" }, { status: 400 });
      if (request.headers.get("upgrade")?.toLowerCase() !== "websocket") {
        return Response.json({ error: "This is a WebSocket" }, { status: 426 });
      }
      const { socket, response } = Deno.upgradeWebSocket(request);
      const served = new Socket(hub, socket, speaks, follower, () => feed.start());
      sockets.add(served);
      socket.addEventListener("close", () => sockets.delete(served));
      return response;
    },
    async close() {
      for (const socket of sockets) socket.close(1001, "the server stops");
      await feed.close();
      await database.end({ timeout: 1 });
    },
  };
}
