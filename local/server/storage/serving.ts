// Answers that carry an object: its bytes, whole or in part, or what is known about it.

import { type Blobs, stream } from "./blobs.ts";
import { refusals } from "./errors.ts";
import type { Found } from "./objects.ts";

interface Served {
  /** The Expires header of a signed URL; otherwise the object's own Cache-Control counts. */
  expires?: Date;
  /** The request's `download` parameter: a name to save under, or empty. */
  download?: string | null;
}

/** Answers with an object's bytes. Only the row is read, and nothing is written to it. */
export async function serveBytes(blobs: Blobs, object: Found, request: Request, served: Served): Promise<Response> {
  const file = await blobs.open(object.version);
  if (!file) throw refusals.noSuchKey();
  const { size } = await file.stat();
  const headers = headersOf(object, served);

  if (unchanged(request, object)) {
    file.close();
    return new Response(null, { status: 304, headers });
  }
  let start = 0;
  let length = size;
  let status = 200;
  const range = /^bytes=(\d*)-(\d*)$/.exec(request.headers.get("range") ?? "");
  if (range && (range[1] || range[2])) {
    const first = range[1] ? Number(range[1]) : Math.max(0, size - Number(range[2]));
    const last = range[1] && range[2] ? Math.min(Number(range[2]), size - 1) : size - 1;
    if (first > last) {
      file.close();
      throw refusals.unsatisfiableRange();
    }
    [start, length, status] = [first, last - first + 1, 206];
    headers.set("content-range", `bytes ${first}-${last}/${size}`);
  }
  headers.set("content-length", String(length));
  if (request.method === "HEAD") {
    file.close();
    return new Response(null, { status, headers });
  }
  return new Response(await stream(file, start, length), { status, headers });
}

/** Answers with what is known about an object; `metadata` is the user's own. */
export function describe(object: Found): Response {
  const known = object.metadata ?? {};
  return Response.json({
    id: object.id,
    name: object.name,
    version: object.version,
    bucket_id: object.bucket_id,
    size: known.size ?? null,
    content_type: known.mimetype ?? null,
    cache_control: known.cacheControl ?? null,
    etag: known.eTag ?? null,
    metadata: object.user_metadata,
    last_modified: object.updated_at,
    created_at: object.created_at,
  }, { headers: { "cache-control": "no-cache" } });
}

function headersOf(object: Found, served: Served): Headers {
  const known = object.metadata ?? {};
  const type = String(known.mimetype ?? "application/octet-stream");
  const headers = new Headers({
    "accept-ranges": "bytes",
    // A page of an uploader's must not run in this origin; the real server does the same.
    "content-type": type.includes("text/html") ? "text/plain" : printable(type),
  });
  if (known.eTag) headers.set("etag", printable(String(known.eTag)));
  if (known.lastModified) headers.set("last-modified", new Date(String(known.lastModified)).toUTCString());
  if (served.expires) headers.set("expires", served.expires.toUTCString());
  else if (known.cacheControl) headers.set("cache-control", printable(String(known.cacheControl)));
  if (served.download === "") headers.set("content-disposition", "attachment;");
  else if (served.download) {
    const name = encodeURIComponent(served.download);
    headers.set("content-disposition", `attachment; filename=${name}; filename*=UTF-8''${name};`);
  }
  return headers;
}

// Type and Cache-Control are an uploader's text; what no header may hold would fail the whole answer.
function printable(value: string): string {
  return value.replace(/[^\x20-\x7e]/g, "");
}

function unchanged(request: Request, object: Found): boolean {
  const known = object.metadata ?? {};
  const tags = request.headers.get("if-none-match");
  if (tags !== null) {
    return tags.split(",").some((tag) => tag.trim() === "*" || tag.trim().replace(/^W\//, "") === known.eTag);
  }
  const since = Date.parse(request.headers.get("if-modified-since") ?? "");
  const modified = Date.parse(String(known.lastModified ?? ""));
  // HTTP dates hold whole seconds.
  return Math.floor(modified / 1000) * 1000 <= since;
}
