// Lists of objects: one level of folders, or a flat walk with a cursor. What the caller may not see is not in them.

import { type Caller, type Database, inRole } from "./database.ts";
import { refusals } from "./errors.ts";

const LONGEST_PAGE = 10_000;
const COLUMNS = ["name", "updated_at", "created_at", "last_accessed_at"];

type Entry = Record<string, unknown>;

/** Lists one folder: first its folders, with a null id, then its objects; names are without the folder's path. */
export async function listFolder(
  database: Database,
  caller: Caller,
  bucket: string,
  body: Record<string, unknown>,
): Promise<Entry[]> {
  const folder = text(body.prefix, "prefix");
  const prefix = folder === "" || folder.endsWith("/") ? folder : `${folder}/`;
  const search = text(body.search, "search").toLowerCase();
  const limit = whole(body.limit, "limit", 100, 1, LONGEST_PAGE);
  const offset = whole(body.offset, "offset", 0, 0, Number.MAX_SAFE_INTEGER);
  const { column, descending } = sorting(body.sortBy, COLUMNS);
  return await inRole(database, { caller, operation: "storage.object.list" }, async (tx) => [
    ...await tx`
      with here as (
        select substr(name, length(${prefix}::text) + 1) as rest, id, updated_at, created_at, last_accessed_at, metadata
        from storage.objects
        where bucket_id = ${bucket} and starts_with(name, ${prefix}::text)
      ), entries as (
        select split_part(rest, '/', 1) as name, null::uuid as id, null::timestamptz as updated_at,
               null::timestamptz as created_at, null::timestamptz as last_accessed_at, null::jsonb as metadata
        from here where strpos(rest, '/') > 0 group by 1
        union all
        select rest, id, updated_at, created_at, last_accessed_at, metadata
        from here where strpos(rest, '/') = 0
      )
      select * from entries where starts_with(lower(name), ${search}::text)
      order by (id is null) desc, ${tx(column)} ${descending ? tx`desc` : tx`asc`}, name
      limit ${limit} offset ${offset}`,
  ]);
}

/** Walks a bucket in the order of names; `nextCursor` continues where the page ended. */
export async function listPage(
  database: Database,
  caller: Caller,
  bucket: string,
  body: Record<string, unknown>,
): Promise<Entry> {
  const prefix = text(body.prefix, "prefix");
  const limit = whole(body.limit, "limit", 1000, 1, LONGEST_PAGE);
  const after = body.cursor === undefined ? null : cursor(text(body.cursor, "cursor"));
  const { descending } = sorting(body.sortBy, ["name"]);
  const delimited = body.with_delimiter === true;
  const rows = await inRole(database, { caller, operation: "storage.object.list_v2" }, (tx) =>
    tx`
    with here as (
      select case when ${delimited} and strpos(substr(name, length(${prefix}::text) + 1), '/') > 0
                  then ${prefix}::text || split_part(substr(name, length(${prefix}::text) + 1), '/', 1) || '/'
                  else name end as key,
             name, id, version, updated_at, created_at, last_accessed_at, metadata
      from storage.objects
      where bucket_id = ${bucket} and starts_with(name, ${prefix}::text)
    ), entries as (
      select distinct on (key) key, key <> name as folder, id, version, updated_at, created_at, last_accessed_at,
             metadata
      from here order by key, name
    )
    select * from entries
    where ${after}::text is null or case when ${descending} then key collate "C" < ${after}::text collate "C"
                                         else key collate "C" > ${after}::text collate "C" end
    order by key collate "C" ${descending ? tx`desc` : tx`asc`}
    limit ${limit + 1}`);
  const page = rows.slice(0, limit);
  const last = page.at(-1);
  const hasNext = rows.length > limit;
  return {
    hasNext,
    folders: page.filter((row) => row.folder).map((row) => ({ name: row.key, key: row.key })),
    objects: page.filter((row) => !row.folder).map(({ folder: _, key, ...row }) => ({ name: key, key, ...row })),
    ...(hasNext && last ? { nextCursor: new TextEncoder().encode(last.key).toBase64() } : {}),
  };
}

function sorting(value: unknown, columns: string[]): { column: string; descending: boolean } {
  const sort = typeof value === "object" && value !== null ? value as Record<string, unknown> : {};
  const column = text(sort.column, "sortBy.column") || columns[0];
  const order = (text(sort.order, "sortBy.order") || "asc").toLowerCase();
  if (!columns.includes(column)) throw refusals.invalidParameter(`sortBy.column must be one of ${columns.join(", ")}`);
  if (order !== "asc" && order !== "desc") throw refusals.invalidParameter("sortBy.order must be asc or desc");
  return { column, descending: order === "desc" };
}

function cursor(value: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.fromBase64(value));
  } catch {
    throw refusals.invalidParameter("cursor must be one that this list returned");
  }
}

function text(value: unknown, name: string): string {
  if (value === undefined || value === null) return "";
  if (typeof value !== "string" || value.includes("\0")) throw refusals.invalidParameter(`${name} must be text`);
  return value;
}

/** Returns a whole number between two bounds; the Python client sends them as text. */
export function whole(value: unknown, name: string, otherwise: number, least: number, most: number): number {
  if (value === undefined || value === null) return otherwise;
  const number = typeof value === "string" && value.trim() !== "" ? Number(value) : value;
  if (typeof number !== "number" || !Number.isInteger(number) || number < least || number > most) {
    throw refusals.invalidParameter(`${name} must be a whole number from ${least} to ${most}`);
  }
  return number;
}
