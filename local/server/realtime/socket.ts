// One client's connection: its frames in, its channels, its frames out.

import { type Follower, Refused } from "./caller.ts";
import { Channel, type Hub } from "./channel.ts";
import type { Broadcast, Message, Protocol } from "./frames.ts";

const MOST_CHANNELS = 100;
const LARGEST_FRAME = 3 * 2 ** 20;
// A client that reads slower than it is told things is cut off; it comes back and reads the rows.
const MOST_UNSENT = 8 * 2 ** 20;
const PREFIX = "realtime:";

export class Socket {
  #channels = new Map<string, { channel: Channel; joinRef: string | null }>();
  // One frame after the other: a leave must not overtake its join.
  #handling: Promise<void> = Promise.resolve();

  constructor(
    private readonly hub: Hub,
    private readonly socket: WebSocket,
    private readonly protocol: Protocol,
    private readonly follower: Follower,
    /** Resolves when what is committed from now on will be heard. */
    private readonly heard: () => Promise<void>,
  ) {
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = () => this.#over();
    socket.onerror = () => this.#over();
  }

  close(code: number, reason: string): void {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.close(code, reason);
  }

  #receive(frame: string | ArrayBuffer): void {
    const size = typeof frame === "string" ? frame.length : frame.byteLength;
    if (size > LARGEST_FRAME) return this.close(1009, "the frame is too large");
    let message: Message;
    try {
      message = this.protocol.decode(frame);
    } catch {
      return this.close(1003, "the frame cannot be read");
    }
    if (message.event === "heartbeat") return this.#reply(message, "ok");
    this.#handling = this.#handling.then(() => this.#handle(message)).catch((error) => {
      console.error(`realtime: ${message.event} failed:`, error);
      this.#reply(message, "error", { reason: "UnknownErrorOnChannel: the local server failed; its log says why" });
    });
  }

  async #handle(message: Message): Promise<void> {
    if (message.event === "phx_join") return await this.#join(message);
    const found = this.#channels.get(message.topic);
    if (!found) return;
    const { channel } = found;
    switch (message.event) {
      case "phx_leave":
        channel.leave();
        this.#channels.delete(message.topic);
        this.#reply(message, "ok");
        this.#close(message.topic, found.joinRef);
        break;
      case "access_token":
        await channel.refresh(message.payload.access_token);
        break;
      case "broadcast": {
        const { event, payload } = message.payload;
        const passed = await channel.say({ event: String(event), payload });
        if (passed && message.ref) this.#reply(message, "ok");
        break;
      }
    }
  }

  async #join(message: Message): Promise<void> {
    const { topic, joinRef } = message;
    const before = this.#channels.get(topic);
    if (before) {
      before.channel.leave();
      this.#channels.delete(topic);
      this.#close(topic, before.joinRef);
    }
    try {
      if (!topic.startsWith(PREFIX) || topic === PREFIX) {
        throw new Refused("TopicNameRequired: You must provide a topic name");
      }
      if (this.#channels.size >= MOST_CHANNELS) throw new Refused("ChannelRateLimitReached: Too many channels");
      const channel = this.#channelOf(topic, joinRef ?? message.ref);
      await this.heard();
      const response = await channel.join(message.payload);
      if (this.socket.readyState !== WebSocket.OPEN) return channel.leave();
      this.#channels.set(topic, { channel, joinRef: joinRef ?? message.ref });
      this.#reply(message, "ok", response);
      await channel.subscribeToChanges();
    } catch (thrown) {
      if (!(thrown instanceof Refused)) throw thrown;
      this.#reply(message, "error", { reason: thrown.message });
    }
  }

  #channelOf(topic: string, joinRef: string | null): Channel {
    const line = {
      send: (event: string, payload: Record<string, unknown>) => {
        // Of what the server says by itself only the end names the join it belongs to.
        const ref = event === "phx_close" ? joinRef : null;
        this.#send(this.protocol.encode({ joinRef: ref, ref, topic, event, payload }));
      },
      broadcast: (said: Broadcast) => {
        const frame = this.protocol.broadcast(topic, said);
        if (frame !== null) this.#send(frame);
      },
      ended: () => this.#channels.delete(topic),
    };
    return new Channel(this.hub, line, topic.slice(PREFIX.length), this.follower);
  }

  #close(topic: string, joinRef: string | null): void {
    this.#send(this.protocol.encode({ joinRef, ref: joinRef, topic, event: "phx_close", payload: {} }));
  }

  #reply({ joinRef, ref, topic }: Message, status: string, response: Record<string, unknown> = {}): void {
    this.#send(this.protocol.encode({ joinRef, ref, topic, event: "phx_reply", payload: { status, response } }));
  }

  #send(frame: string | Uint8Array<ArrayBuffer>): void {
    if (this.socket.readyState !== WebSocket.OPEN) return;
    if (this.socket.bufferedAmount > MOST_UNSENT) return this.close(1008, "too slow");
    this.socket.send(frame);
  }

  #over(): void {
    for (const { channel } of this.#channels.values()) channel.leave();
    this.#channels.clear();
  }
}
