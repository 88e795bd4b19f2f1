// The rows of storage.objects, written as the recorded server writes them.
//
// A write is two transactions. First a probe in the caller's role, which row triggers see and which is rolled back:
// may they do this? Then the bytes, whole, to a file of their own. Then the final write as service_role. So a trigger
// on the table sees the file when it sees the row, and auth.uid() is null in it: the owner is in owner_id.
//
// `storeObject` is the one way in for bytes. Resumable uploads, which probe several times and bring a finished file,
// call its parts `probeUpload` and `finishUpload`.

import type { Blobs, Written } from "./blobs.ts";
import {
  type Caller,
  type Database,
  inRole,
  type Json,
  PostgresError,
  probe,
  SERVICE,
  type Transaction,
} from "./database.ts";
import { refusals, StorageError } from "./errors.ts";
import type { Incoming } from "./incoming.ts";
import { isUuid } from "./names.ts";

export interface Store {
  database: Database;
  blobs: Blobs;
}

/** Where an object is to be, whose it will be, and under which name of operation policies see the write. */
export interface Target {
  caller: Caller;
  operation: string;
  bucket: string;
  name: string;
  owner?: string;
  upsert: boolean;
}

interface Row {
  bucket: string;
  name: string;
  owner?: string;
  version: string;
  metadata: Record<string, unknown>;
  userMetadata?: Record<string, unknown> | null;
}

export interface Found {
  id: string;
  name: string;
  bucket_id: string;
  version: string;
  metadata: Record<string, unknown> | null;
  user_metadata: Record<string, unknown> | null;
  created_at: Date;
  updated_at: Date;
}

// What a probe carries instead of a version.
const PROBE_VERSION = "1";

/** Stores an upload and returns the object's id. Refused or failed, it leaves row and bytes as they were. */
export async function storeObject(store: Store, target: Target, upload: Incoming, limit: number): Promise<string> {
  await probeUpload(store, target, probeMetadata(upload.mimetype, upload.declaredLength), upload.userMetadata);
  const version = crypto.randomUUID();
  const written = await store.blobs.write(version, upload.bytes, limit);
  const metadata = storedMetadata(written, upload.mimetype, upload.cacheControl);
  return await finishUpload(store, target, version, metadata, upload.userMetadata ?? {});
}

/** Asks whether the caller may write here; refuses a taken name unless the target is an upsert. */
export async function probeUpload(
  store: Store,
  target: Target,
  metadata: Record<string, unknown>,
  userMetadata?: Record<string, unknown> | null,
): Promise<void> {
  const row = { ...target, version: PROBE_VERSION, metadata, userMetadata };
  await probe(store.database, target, (tx) => target.upsert ? upsert(tx, row) : insert(tx, row));
}

/** Points the row at a version whose bytes are complete, removes those it replaces, and returns the object's id. */
export async function finishUpload(
  store: Store,
  target: Target,
  version: string,
  metadata: Record<string, unknown>,
  userMetadata: Record<string, unknown> | null,
): Promise<string> {
  const row = { ...target, version, metadata, userMetadata };
  const { id, replaced } = await keepingBlobOf(
    version,
    store,
    () =>
      inRole(store.database, { caller: SERVICE, operation: target.operation }, async (tx) => {
        await lockNames(tx, [[row.bucket, row.name]]);
        const [old] = await tx`select version from storage.objects
        where bucket_id = ${row.bucket} and name = ${row.name} for update`;
        return { id: await upsert(tx, row), replaced: old?.version as string | undefined };
      }),
  );
  if (replaced !== version) await store.blobs.remove(replaced);
  return id;
}

export function probeMetadata(mimetype: string | null, length: number | undefined): Record<string, unknown> {
  return { ...(mimetype === null ? {} : { mimetype }), ...(length === undefined ? {} : { contentLength: length }) };
}

/** What the final write says of bytes that are complete. */
export function storedMetadata({ size, eTag }: Written, mimetype: string, cacheControl: string) {
  const lastModified = new Date().toISOString();
  return { eTag, size, mimetype, cacheControl, lastModified, contentLength: size, httpStatusCode: 200 };
}

/** Renames an object, into another bucket too. Its id stays, its version does not; the mover becomes its owner. */
export async function moveObject(
  store: Store,
  caller: Caller,
  from: { bucket: string; name: string },
  to: { bucket: string; name: string },
): Promise<void> {
  const operation = "storage.object.move";
  const version = crypto.randomUUID();
  const owner = caller.sub;
  await probe(store.database, { caller, operation }, async (tx) => {
    const moved = await tx`update storage.objects
      set name = ${to.name}, bucket_id = ${to.bucket}, version = ${version},
          owner = coalesce(${uuidOrNull(owner)}::uuid, owner), owner_id = coalesce(${owner ?? null}, owner_id)
      where bucket_id = ${from.bucket} and name = ${from.name}`;
    if (moved.count === 0) throw refusals.noSuchKey();
  });
  if (from.bucket === to.bucket && from.name === to.name) return;

  // The bytes are copied under the row's lock: an overwrite that lands between would otherwise be lost.
  const replaced = await keepingBlobOf(
    version,
    store,
    () =>
      inRole(store.database, { caller: SERVICE, operation }, async (tx) => {
        await lockNames(tx, [[from.bucket, from.name], [to.bucket, to.name]]);
        const [source] = await tx`select version, metadata from storage.objects
        where bucket_id = ${from.bucket} and name = ${from.name} for update`;
        if (!source) throw refusals.noSuchKey();
        await store.blobs.copy(source.version, version);
        const metadata = { ...source.metadata, lastModified: new Date().toISOString() };
        await tx`update storage.objects
        set name = ${to.name}, bucket_id = ${to.bucket}, version = ${version}, metadata = ${tx.json(metadata)},
            owner = coalesce(${uuidOrNull(owner)}::uuid, owner), owner_id = coalesce(${owner ?? null}, owner_id)
        where bucket_id = ${from.bucket} and name = ${from.name}`;
        return source.version as string;
      }),
  );
  await store.blobs.remove(replaced);
}

/** Copies an object that the caller may read; the copy is theirs, with an id of its own and the same eTag. */
export async function copyObject(
  store: Store,
  target: Target,
  from: { bucket: string; name: string },
  replacing?: { metadata: Record<string, unknown>; userMetadata?: Record<string, unknown> },
): Promise<Found> {
  const source = await findObject(store.database, target.caller, target.operation, from.bucket, from.name);
  const metadata = { ...source.metadata, ...replacing?.metadata };
  const userMetadata = replacing ? replacing.userMetadata ?? {} : source.user_metadata;
  await probeUpload(store, target, metadata, userMetadata);
  const version = crypto.randomUUID();
  await store.blobs.copy(source.version, version);
  const copied = { ...metadata, lastModified: new Date().toISOString() };
  const id = await finishUpload(store, target, version, copied, userMetadata);
  return { ...source, id, name: target.name, bucket_id: target.bucket, version, metadata: copied };
}

/** Deletes the named objects that the caller may delete, in one transaction; the others are passed over. */
export async function deleteObjects(
  store: Store,
  caller: Caller,
  operation: string,
  bucket: string,
  names: string[],
): Promise<Record<string, unknown>[]> {
  return await inRole(store.database, { caller, operation, deletes: true }, async (tx) => {
    const rows = await tx`delete from storage.objects where bucket_id = ${bucket} and name = any(${names}::text[])
      returning name, bucket_id, owner, owner_id, version, id, updated_at, created_at, last_accessed_at, metadata,
                user_metadata`;
    for (const row of rows) await store.blobs.remove(row.version);
    return [...rows];
  });
}

/** Deletes everything in a bucket, in one transaction. */
export async function emptyBucket(store: Store, bucket: string): Promise<void> {
  await inRole(store.database, { caller: SERVICE, operation: "", deletes: true }, async (tx) => {
    const rows = await tx`delete from storage.objects where bucket_id = ${bucket} returning version`;
    for (const row of rows) await store.blobs.remove(row.version);
  });
}

/** Returns an object that the caller may see; refuses every other as not found. */
export async function findObject(
  database: Database,
  caller: Caller,
  operation: string,
  bucket: string,
  name: string,
): Promise<Found> {
  const rows = await inRole(database, { caller, operation }, (tx) =>
    tx<Found[]>`
    select id, name, bucket_id, version, metadata, user_metadata, created_at, updated_at
    from storage.objects where bucket_id = ${bucket} and name = ${name}`);
  if (rows.length === 0) throw refusals.noSuchKey();
  return rows[0];
}

/** Returns which of the names are objects that the caller may see. */
export async function findNames(
  database: Database,
  caller: Caller,
  operation: string,
  bucket: string,
  names: string[],
): Promise<Set<string>> {
  const rows = await inRole(database, { caller, operation }, (tx) =>
    tx`
    select name from storage.objects where bucket_id = ${bucket} and name = any(${names}::text[])`);
  return new Set(rows.map((row) => row.name));
}

async function insert(tx: Transaction, row: Row): Promise<string> {
  const [{ id }] = await tx`
    insert into storage.objects (bucket_id, name, owner, owner_id, version, metadata, user_metadata)
    values (${row.bucket}, ${row.name}, ${uuidOrNull(row.owner)}, ${row.owner ?? null}, ${row.version},
            ${json(tx, row.metadata)}, ${json(tx, row.userMetadata)})
    returning id`;
  return id;
}

// What the write does not know, it keeps: the owner when a key writes, and in a probe the user's metadata.
async function upsert(tx: Transaction, row: Row): Promise<string> {
  const [{ id }] = await tx`
    insert into storage.objects as o (bucket_id, name, owner, owner_id, version, metadata, user_metadata)
    values (${row.bucket}, ${row.name}, ${uuidOrNull(row.owner)}, ${row.owner ?? null}, ${row.version},
            ${json(tx, row.metadata)}, ${json(tx, row.userMetadata)})
    on conflict (bucket_id, name) do update set
      version = excluded.version, metadata = excluded.metadata,
      user_metadata = coalesce(excluded.user_metadata, o.user_metadata),
      owner = coalesce(excluded.owner, o.owner), owner_id = coalesce(excluded.owner_id, o.owner_id)
    returning id`;
  return id;
}

// One writer a name at a time. Two first uploads have no row to lock, and the loser's bytes would stay behind.
// Locks are taken in one order, so that two moves that cross do not wait for each other.
async function lockNames(tx: Transaction, names: [string, string][]): Promise<void> {
  const paths = [...new Set(names.map((name) => name.join("/")))].sort();
  for (const path of paths) await tx`select pg_advisory_xact_lock(hashtextextended(${path}, 5077))`;
}

// Removes the new bytes when the database refused the row. When the connection broke, nobody knows whether the
// commit arrived: the bytes stay, and the sweep at the next start removes them if they have no row.
async function keepingBlobOf<T>(version: string, store: Store, write: () => Promise<T>): Promise<T> {
  try {
    return await write();
  } catch (thrown) {
    if (thrown instanceof PostgresError || thrown instanceof StorageError) await store.blobs.remove(version);
    throw thrown;
  }
}

function json(tx: Transaction, value: Record<string, unknown> | null | undefined) {
  return value === null || value === undefined ? null : tx.json(value as Json);
}

function uuidOrNull(value: string | undefined): string | null {
  return value !== undefined && isUuid(value) ? value : null;
}
