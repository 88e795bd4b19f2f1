// Buckets: their rows, under the policies on storage.buckets, and the limits an upload has to keep.

import { type Caller, type Database, inRole, PostgresError, type Scope } from "./database.ts";
import { refusals } from "./errors.ts";
import { whole } from "./listing.ts";
import { bucketName, sizeLimit } from "./names.ts";
import { emptyBucket as emptyRows, type Store } from "./objects.ts";

export interface Limits {
  public: boolean;
  fileSizeLimit: number | null;
  allowedMimeTypes: string[] | null;
}

/** Returns a bucket's limits, whoever asks; null where there is none. */
export async function bucketLimits(database: Database, id: string): Promise<Limits | null> {
  const [row] =
    await database`select public, file_size_limit, allowed_mime_types from storage.buckets where id = ${id}`;
  if (!row) return null;
  return {
    public: row.public === true,
    fileSizeLimit: row.file_size_limit === null ? null : Number(row.file_size_limit),
    allowedMimeTypes: row.allowed_mime_types,
  };
}

export async function listBuckets(database: Database, caller: Caller, query: URLSearchParams) {
  const limit = whole(query.get("limit"), "limit", 1000, 1, 1000);
  const offset = whole(query.get("offset"), "offset", 0, 0, Number.MAX_SAFE_INTEGER);
  const search = (query.get("search") ?? "").replaceAll("\0", "").toLowerCase();
  const rows = await inRole(database, scope(caller, "list"), (tx) =>
    tx`
    select id, name, owner, public, type, file_size_limit, allowed_mime_types, created_at, updated_at
    from storage.buckets where strpos(lower(name), ${search}) > 0 order by name limit ${limit} offset ${offset}`);
  return rows.map(visible);
}

export async function getBucket(database: Database, caller: Caller, id: string) {
  const [row] = await inRole(database, scope(caller, "get"), (tx) =>
    tx`
    select id, name, owner, public, type, file_size_limit, allowed_mime_types, created_at, updated_at
    from storage.buckets where id = ${id}`);
  if (!row) throw refusals.noSuchBucket();
  return visible(row);
}

export async function createBucket(database: Database, caller: Caller, body: Record<string, unknown>) {
  const name = bucketName(body.name);
  const id = bucketName(body.id ?? name);
  try {
    await inRole(database, scope(caller, "create"), (tx) =>
      tx`
      insert into storage.buckets (id, name, owner_id, public, file_size_limit, allowed_mime_types)
      values (${id}, ${name}, ${caller.sub ?? null}, ${body.public === true}, ${sizeLimit(body.file_size_limit)},
              ${mimeTypes(body.allowed_mime_types)})`);
  } catch (thrown) {
    if (thrown instanceof PostgresError && thrown.code === "23505") throw refusals.bucketAlreadyExists();
    throw thrown;
  }
  return { name: id };
}

/** Changes what the body names and leaves the rest; null takes a limit away. */
export async function updateBucket(database: Database, caller: Caller, id: string, body: Record<string, unknown>) {
  const size = sizeLimit(body.file_size_limit);
  const types = mimeTypes(body.allowed_mime_types);
  const changed = await inRole(database, scope(caller, "update"), (tx) =>
    tx`
    update storage.buckets set updated_at = now(),
      public = coalesce(${typeof body.public === "boolean" ? body.public : null}::boolean, public),
      file_size_limit = case when ${body.file_size_limit === undefined} then file_size_limit else ${size}::bigint end,
      allowed_mime_types =
        case when ${body.allowed_mime_types === undefined} then allowed_mime_types else ${types}::text[] end
    where id = ${id}`);
  if (changed.count === 0) throw refusals.noSuchBucket();
  return { message: "Successfully updated" };
}

/** Deletes everything in a bucket; only the secret key may, because no policy on objects is asked. */
export async function emptyBucket(store: Store, caller: Caller, id: string) {
  if (caller.role !== "service_role") throw refusals.accessDenied("Only the secret key may empty a bucket");
  await getBucket(store.database, caller, id);
  await emptyRows(store, id);
  return { message: "Empty bucket has been queued. Completion may take up to an hour." };
}

export async function deleteBucket(database: Database, caller: Caller, id: string) {
  await getBucket(database, caller, id);
  try {
    await inRole(database, { ...scope(caller, "delete"), deletes: true }, async (tx) => {
      const deleted = await tx`delete from storage.buckets where id = ${id}`;
      if (deleted.count === 0) throw refusals.noSuchBucket();
    });
  } catch (thrown) {
    // Objects refer to their bucket, so the database itself refuses to drop one that holds any.
    if (thrown instanceof PostgresError && thrown.code === "23503") throw refusals.bucketNotEmpty();
    throw thrown;
  }
  return { message: "Successfully deleted" };
}

function scope(caller: Caller, operation: string): Scope {
  return { caller, operation: `storage.bucket.${operation}` };
}

function visible(row: Record<string, unknown>) {
  const limit = row.file_size_limit === null ? null : Number(row.file_size_limit);
  return { ...row, owner: row.owner ?? "", file_size_limit: limit };
}

function mimeTypes(value: unknown): string[] | null {
  if (value === null || value === undefined) return null;
  const right = (entry: unknown) => typeof entry === "string" && /^[\w!#$&^.+*-]+\/[\w!#$&^.+*-]+$/.test(entry);
  if (!Array.isArray(value) || value.length > 100 || !value.every(right)) {
    throw refusals.invalidParameter("allowed_mime_types must be a list of types such as image/png or image/*");
  }
  return value;
}
