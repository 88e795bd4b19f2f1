// Postgres Changes: each change of a published table to those subscribers who can see the row.
//
// As on the real server: an INSERT or UPDATE is shown to whom a select by primary key shows the row as it is now; a
// DELETE, of which nobody can see the row any more, is shown as its key to everybody whose filters match.

import type { Caller, Database } from "../storage/database.ts";
import type { Change, Column } from "./feed.ts";
import { assume } from "./policies.ts";

/** What a client asks for; answered as it was asked, with an id. */
export interface Wanted {
  event: string;
  schema: string;
  table?: string;
  filter?: string;
}

export interface Subscriber {
  readonly caller: Caller;
  readonly wanted: (Wanted & { id: number })[];
  tell(payload: Record<string, unknown>): void;
}

type Test = (value: unknown) => boolean;

export class Changes {
  #subscribers = new Set<Subscriber>();
  #types = new Map<number, string>();
  #telling: Promise<void> = Promise.resolve();
  #lastId = 0;

  constructor(private readonly database: Database) {}

  /** Gives each wish its id; throws where a filter cannot be understood. */
  number(wanted: Wanted[]): (Wanted & { id: number })[] {
    for (const { filter } of wanted) if (filter) filterOf(filter);
    return wanted.map((wish) => ({ ...wish, id: ++this.#lastId }));
  }

  /** Returns why nothing would ever come, or null: a table has to be published. */
  async subscribe(subscriber: Subscriber): Promise<string | null> {
    for (const { schema, table, filter, event } of subscriber.wanted) {
      const published = await this.database`
        select from pg_publication_tables
         where pubname = 'supabase_realtime' and schemaname = ${schema} and ${table ?? "*"}::text in ('*', tablename)`;
      if (published.length === 0) {
        return "Unable to subscribe to changes with given parameters. Please check Realtime is enabled for the given " +
          `connect parameters: [event: ${event}, schema: ${schema}, table: ${table}, filters: [${filter ?? ""}]]`;
      }
    }
    this.#subscribers.add(subscriber);
    return null;
  }

  unsubscribe(subscriber: Subscriber): void {
    this.#subscribers.delete(subscriber);
  }

  /** Tells a change, after all that came before it. */
  changed(change: Change): void {
    if (this.#subscribers.size === 0) return;
    const at = new Date().toISOString();
    this.#telling = this.#telling.then(() => this.#tell(change, at)).catch((error) => {
      console.error("realtime: a change was not told:", error);
    });
  }

  async #tell(change: Change, at: string): Promise<void> {
    for (const subscriber of this.#subscribers) {
      const ids = subscriber.wanted.filter((wish) => matches(wish, change)).map((wish) => wish.id);
      if (ids.length === 0) continue;
      const data = await this.#seenBy(subscriber.caller, change);
      if (data) subscriber.tell({ ids, data: { ...data, commit_timestamp: at } });
    }
  }

  async #seenBy(caller: Caller, change: Change): Promise<Record<string, unknown> | null> {
    const { schema, table, type, keys } = change;
    const told = { schema, table, type };
    if (keys.length === 0) return { ...told, record: {}, errors: ["Error 400: Bad Request, no primary key"] };
    const name = `${quoted(schema)}.${quoted(table)}`;
    const typeNames = await this.#namesOf(change.columns);
    const where = keys.map((key, number) =>
      `${quoted(key)} = $${number + 1}::text::${typeNames.get(change.columns.find(({ name }) => name === key)!.type)}`
    );
    return await this.database.begin(async (tx) => {
      await assume(tx, caller);
      const [{ readable }] = await tx`
        select array(select a.attname::text from pg_attribute a
                      where a.attrelid = ${name}::regclass and a.attnum > 0
                        and has_column_privilege(a.attrelid, a.attnum, 'select')) as readable`;
      if (!keys.every((key) => readable.includes(key))) {
        return { ...told, columns: [], record: {}, old_record: {}, errors: ["Error 401: Unauthorized"] };
      }
      const columns = change.columns.filter((column) => readable.includes(column.name));
      const named = columns.map(({ name, type }) => ({ name, type: typeNames.get(type) }));
      const key = recordOf(columns, change.old ?? change.row, keys);
      if (type === "DELETE") return { ...told, columns: named, old_record: key, errors: null };
      const seen = await tx.unsafe(
        `select from ${name} where ${where.join(" and ")}`,
        keys.map((column) => String(change.row[column])),
      );
      if (seen.length === 0) return null;
      const old = type === "UPDATE" ? { old_record: key } : {};
      return { ...told, columns: named, record: recordOf(columns, change.row), ...old, errors: null };
    });
  }

  async #namesOf(columns: Column[]): Promise<Map<number, string>> {
    const missing = columns.map(({ type }) => type).filter((type) => !this.#types.has(type));
    if (missing.length > 0) {
      const rows = await this.database<{ oid: number; name: string }[]>`
        select t.oid::int, case when n.nspname = 'pg_catalog' then t.typname::text else t.oid::regtype::text end as name
          from pg_type t join pg_namespace n on n.oid = t.typnamespace where t.oid = any (${missing}::int[])`;
      for (const { oid, name } of rows) this.#types.set(oid, name);
    }
    return this.#types;
  }
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

function recordOf(columns: Column[], row: Record<string, unknown>, only?: string[]): Record<string, unknown> {
  const shown = columns.filter(({ name }) => row[name] !== undefined && (!only || only.includes(name)));
  return Object.fromEntries(shown.map(({ name, type }) => [name, asJson(type, row[name])]));
}

// As to_jsonb writes them: 20 is int8, 1114 and 1184 are times.
function asJson(type: number, value: unknown): unknown {
  if (typeof value !== "string") return value;
  if (type === 20) return Number(value);
  if (type === 1114 || type === 1184) return value.replace(" ", "T").replace(/([+-]\d\d)$/, "$1:00");
  return value;
}

function matches({ event, schema, table, filter }: Wanted, change: Change): boolean {
  if (event !== "*" && event !== change.type) return false;
  if (schema !== change.schema || (table && table !== "*" && table !== change.table)) return false;
  if (!filter) return true;
  const { column, test } = filterOf(filter);
  return test(change.row[column]);
}

// The comparisons that need no knowledge of types but of numbers.
function filterOf(filter: string): { column: string; test: Test } {
  const [, column, operator, operand] = /^(\w+)=(eq|neq|lt|lte|gt|gte|in)\.(.*)$/s.exec(filter) ?? [];
  if (!column) throw new Error(`The filter ${filter} cannot be understood`);
  const list = operator === "in" ? operand.replace(/^\(|\)$/g, "").split(",") : [operand];
  const tests: Record<string, (value: string) => boolean> = {
    eq: (value) => value === operand,
    neq: (value) => value !== operand,
    in: (value) => list.includes(value),
    lt: (value) => compare(value, operand) < 0,
    lte: (value) => compare(value, operand) <= 0,
    gt: (value) => compare(value, operand) > 0,
    gte: (value) => compare(value, operand) >= 0,
  };
  return { column, test: (value) => value !== null && value !== undefined && tests[operator](String(value)) };
}

function compare(left: string, right: string): number {
  const difference = Number(left) - Number(right);
  return Number.isNaN(difference) ? (left < right ? -1 : left > right ? 1 : 0) : difference;
}
