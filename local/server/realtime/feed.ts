// What the database commits, in the order of commits, by logical decoding: messages to broadcast, and changes of the
// tables that are published. It begins with the first client, as on the real server.

import postgres from "postgres";

/** A row of realtime.messages. */
export interface Sent {
  id: string;
  topic: string;
  event: string;
  private: boolean;
  payload: unknown;
}

export interface Column {
  name: string;
  /** The type's oid. */
  type: number;
}

export interface Change {
  schema: string;
  table: string;
  type: "INSERT" | "UPDATE" | "DELETE";
  columns: Column[];
  keys: string[];
  /** The new row, texts as Postgres writes them; of a DELETE the old one's key. */
  row: Record<string, unknown>;
  /** The key as it was, where an UPDATE changed it. */
  old: Record<string, unknown> | null;
}

export interface Hearers {
  sent(message: Sent): void;
  changed(change: Change): void;
  /** The connection broke and is there again: what was committed in between is not told. */
  interrupted(): void;
}

const PUBLICATIONS = "supabase_realtime,supabase_realtime_messages_publication";
const asText = (oid: number) => ({ to: oid, from: [oid], serialize: String, parse: (text: string) => text });

export class Feed {
  #sql: postgres.Sql;
  #started: Promise<unknown> | null = null;

  constructor(databaseUrl: string, private readonly hearers: Hearers) {
    this.#sql = postgres(databaseUrl, {
      max: 1,
      connect_timeout: 10,
      onnotice: () => {},
      publications: PUBLICATIONS,
      // Times as Postgres writes them: a Date would lose the microseconds.
      types: { date: asText(1082), timestamp: asText(1114), timestamptz: asText(1184) },
      connection: { application_name: "realtime feed" },
    });
  }

  /** Resolves when everything that is committed from now on will be heard. */
  async start(): Promise<void> {
    let first = true;
    this.#started ??= this.#sql.subscribe("*", (row, info) => this.#heard(row, info), () => {
      if (!first) this.hearers.interrupted();
      first = false;
    });
    try {
      await this.#started;
    } catch (error) {
      this.#started = null;
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#sql.end({ timeout: 1 });
  }

  #heard(row: postgres.Row | null, info: postgres.ReplicationEvent): void {
    try {
      const { schema, table, columns, keys } = info.relation as unknown as Relation;
      // A partition tells under its own name.
      if (schema === "realtime") {
        if (info.command === "insert" && row?.extension === "broadcast") this.hearers.sent(row as unknown as Sent);
        return;
      }
      this.hearers.changed({
        schema,
        table,
        type: info.command.toUpperCase() as Change["type"],
        columns,
        keys: keys.map((key) => key.name),
        row: row ?? {},
        old: info.command === "update" ? info.old : null,
      });
    } catch (error) {
      console.error("realtime: a change was not told:", error);
    }
  }
}

interface Relation {
  schema: string;
  table: string;
  columns: Column[];
  keys: Column[];
}
