// The roles in which the Storage API touches the database.
//
// The pool logs in as supabase_storage_admin, which owns the tables. What a client may do is decided by the
// policies on them, so everything a client asks for runs in a transaction that takes the client's role first.

import postgres from "postgres";

export type Database = postgres.Sql;
export type Transaction = postgres.TransactionSql;
export const PostgresError = postgres.PostgresError;
export type Json = postgres.JSONValue;

export type Role = "anon" | "authenticated" | "service_role";

/** On whose behalf something is done: a role, and the claims that policies read. */
export interface Caller {
  role: Role;
  /** The user's id; absent for keys. */
  sub?: string;
  claims: Record<string, unknown>;
}

export const SERVICE: Caller = { role: "service_role", claims: { role: "service_role" } };
export const ANONYMOUS: Caller = { role: "anon", claims: { role: "anon" } };

/** A transaction's settings: `operation` is what storage.operation() says to policies and triggers. */
export interface Scope {
  caller: Caller;
  operation: string;
  /** Lets the delete trigger of the storage tables pass. */
  deletes?: boolean;
}

const ROLLBACK = Symbol("rollback");

export function connect(databaseUrl: string, name = "storage"): Database {
  return postgres(databaseUrl, {
    max: 10,
    connect_timeout: 10,
    onnotice: () => {},
    connection: { application_name: name, statement_timeout: 30_000, lock_timeout: 5_000 },
  });
}

/** Runs `work` in one transaction in the caller's role and commits it. */
export async function inRole<T>(database: Database, scope: Scope, work: (tx: Transaction) => Promise<T>): Promise<T> {
  return await database.begin(async (tx) => {
    await assume(tx, scope);
    return { value: await work(tx) };
  }).then((done) => done.value as T);
}

/** Runs `work` in the caller's role and rolls it back: whether it would be allowed, and nothing else. */
export async function probe(
  database: Database,
  scope: Scope,
  work: (tx: Transaction) => Promise<unknown>,
): Promise<void> {
  try {
    await database.begin(async (tx) => {
      await assume(tx, scope);
      await work(tx);
      throw ROLLBACK;
    });
  } catch (thrown) {
    if (thrown !== ROLLBACK) throw thrown;
  }
}

// Every setting is local to the transaction. Where no user stands behind the caller `sub` is empty, which
// auth.uid() reads as null.
async function assume(tx: Transaction, { caller, operation, deletes }: Scope): Promise<void> {
  await tx`select
    set_config('role', ${caller.role}, true),
    set_config('request.jwt.claims', ${JSON.stringify(caller.claims)}, true),
    set_config('request.jwt.claim.role', ${caller.role}, true),
    set_config('request.jwt.claim.sub', ${caller.sub ?? ""}, true),
    set_config('storage.operation', ${operation}, true),
    set_config('storage.allow_delete_query', ${deletes ? "true" : ""}, true)`;
}
