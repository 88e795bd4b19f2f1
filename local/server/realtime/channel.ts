// One channel of one client: from its join to its end.

import type { Caller, Database } from "../storage/database.ts";
import { expired, type Follower, type Followers, Refused } from "./caller.ts";
import type { Changes, Subscriber, Wanted } from "./changes.ts";
import type { Broadcast } from "./frames.ts";
import { mayReceive, maySend } from "./policies.ts";

const RECHECK_MS = 5 * 60_000;

/** What channels share. */
export interface Hub {
  database: Database;
  followers: Followers;
  changes: Changes;
  /** Every joined channel, by `keyOf`. */
  channels: Map<string, Set<Channel>>;
}

/** Where a channel speaks. */
export interface Line {
  send(event: string, payload: Record<string, unknown>): void;
  broadcast(said: Broadcast): void;
  /** The channel is over; the client has been told. */
  ended(): void;
}

/** A public channel and a private one of the same name hear nothing of each other. */
export function keyOf(topic: string, isPrivate: boolean): string {
  return `${isPrivate ? "private" : "public"}:${topic}`;
}

export function unauthorized(topic: string): string {
  return `Unauthorized: You do not have permissions to read from this Channel topic: ${topic}`;
}

interface Config {
  private?: boolean;
  broadcast?: { self?: boolean };
  postgres_changes?: Wanted[];
}

export class Channel implements Subscriber {
  wanted: (Wanted & { id: number })[] = [];
  #config: Config = {};
  #follower: Follower;
  #token: string | null = null;
  #maySend: boolean | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #ended = false;

  constructor(
    private readonly hub: Hub,
    private readonly line: Line,
    /** Without the `realtime:` of the wire. */
    readonly topic: string,
    private readonly connection: Follower,
  ) {
    this.#follower = connection;
  }

  get caller(): Caller {
    return this.#follower.caller;
  }

  /** Judges and joins; returns the answer to the client, or throws Refused. */
  async join(payload: Record<string, unknown>): Promise<Record<string, unknown>> {
    this.#config = (payload.config ?? {}) as Config;
    const token = usable(payload.access_token);
    if (token !== null) this.#follower = await this.hub.followers.ofToken(token);
    this.#token = token;
    if (this.#config.private && !await mayReceive(this.hub.database, this.caller, this.topic)) {
      throw new Refused(unauthorized(this.topic));
    }
    try {
      this.wanted = this.hub.changes.number(this.#config.postgres_changes ?? []);
    } catch (error) {
      throw new Refused(`RealtimeDisabledForConfiguration: ${(error as Error).message}`);
    }
    this.#register();
    this.#watch();
    return { postgres_changes: this.wanted };
  }

  /** After the answer to the join: what Postgres Changes asks to be told apart. */
  async subscribeToChanges(): Promise<void> {
    if (this.wanted.length === 0) return;
    const trouble = await this.hub.changes.subscribe(this);
    this.#system("postgres_changes", trouble === null ? "ok" : "error", trouble ?? "Subscribed to PostgreSQL");
    if (this.#ended) this.hub.changes.unsubscribe(this);
  }

  tell(payload: Record<string, unknown>): void {
    if (!this.#ended) this.line.send("postgres_changes", payload);
  }

  hear(said: Broadcast): void {
    this.line.broadcast(said);
  }

  /** Passes on what the client says, where it may; returns whether. */
  async say(said: Broadcast): Promise<boolean> {
    if (this.#config.private) {
      this.#maySend ??= await maySend(this.hub.database, this.caller, this.topic);
      if (!this.#maySend) return false;
    }
    for (const other of this.hub.channels.get(this.#key()) ?? []) {
      if (other !== this || this.#config.broadcast?.self) other.hear(said);
    }
    return true;
  }

  /** Takes a new token; what it no longer allows ends here. */
  async refresh(given: unknown): Promise<void> {
    const token = usable(given);
    if (token === null || token === this.#token) return;
    try {
      this.#follower = await this.hub.followers.ofToken(token);
    } catch (thrown) {
      if (!(thrown instanceof Refused)) throw thrown;
      return this.#shutDown(thrown.message);
    }
    this.#token = token;
    this.#maySend = null;
    if (this.#config.private && !await mayReceive(this.hub.database, this.caller, this.topic)) {
      return this.#shutDown(unauthorized(this.topic));
    }
    this.#watch();
  }

  /** Leaves; the client is not told. */
  leave(): void {
    this.#ended = true;
    clearTimeout(this.#timer);
    const key = this.#key();
    const joined = this.hub.channels.get(key);
    joined?.delete(this);
    if (joined?.size === 0) this.hub.channels.delete(key);
    this.hub.changes.unsubscribe(this);
  }

  #key(): string {
    return keyOf(this.topic, this.#config.private === true);
  }

  #register(): void {
    const key = this.#key();
    const joined = this.hub.channels.get(key) ?? new Set();
    this.hub.channels.set(key, joined.add(this));
  }

  // At its end, or every five minutes, the token is looked at again; rights are not, until there is a new one.
  #watch(): void {
    clearTimeout(this.#timer);
    const { expires } = this.#follower;
    if (expires === undefined || this.#ended) return;
    this.#timer = setTimeout(() => {
      if (expires * 1000 <= Date.now()) this.#shutDown(expired(expires));
      else this.#watch();
    }, Math.min(RECHECK_MS, Math.max(0, expires * 1000 - Date.now())));
  }

  #shutDown(why: string): void {
    if (this.#ended) return;
    this.leave();
    this.#system("system", "error", why.replace(/^(InvalidJWTToken|Unauthorized): /, ""));
    this.line.send("phx_close", {});
    this.line.ended();
  }

  #system(extension: string, status: string, message: string): void {
    this.line.send("system", { extension, status, message, channel: this.topic });
  }
}

// A key in the place of a token means: the connection's own.
function usable(token: unknown): string | null {
  return typeof token === "string" && token !== "" && !token.startsWith("sb_") ? token : null;
}
