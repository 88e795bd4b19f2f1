// What a request carries: an upload's bytes with what it says about them, or a small JSON body.

import { refusals } from "./errors.ts";
import { withoutParameters } from "./names.ts";
import { readForm } from "./multipart.ts";

const IDLE_MS = 60_000;
const DISCARD_MS = 10_000;
const LARGEST_JSON = 1024 * 1024;

export interface Incoming {
  mimetype: string;
  cacheControl: string;
  userMetadata?: Record<string, unknown>;
  /** The request's Content-Length: of a form it counts the form's own lines too. Undefined when chunked. */
  declaredLength?: number;
  bytes: AsyncIterable<Uint8Array>;
}

/** Reads an upload's particulars, from a form or from the headers of a raw body, and leaves its bytes to stream. */
export async function readUpload(request: Request): Promise<Incoming> {
  const contentType = request.headers.get("content-type") ?? "application/octet-stream";
  const declaredLength = contentLength(request);
  const body = chunks(request);
  if (!/^multipart\/form-data/i.test(contentType)) {
    return {
      mimetype: contentType,
      cacheControl: request.headers.get("cache-control") ?? "no-cache",
      userMetadata: metadataHeader(request),
      declaredLength,
      bytes: body,
    };
  }
  const form = await readForm(body, contentType);
  const seconds = form.fields.get("cacheControl");
  const metadata = form.fields.get("metadata") ?? form.fields.get("userMetadata");
  return {
    mimetype: form.fields.get("contentType") || withoutParameters(form.type ?? "application/octet-stream"),
    cacheControl: seconds ? `max-age=${seconds}` : "no-cache",
    userMetadata: metadata === undefined ? undefined : parseMetadata(metadata),
    declaredLength,
    bytes: form.bytes,
  };
}

/** Returns the metadata in the x-metadata header: base64 of a JSON object. What is neither is ignored. */
export function metadataHeader(request: Request): Record<string, unknown> | undefined {
  const encoded = request.headers.get("x-metadata");
  if (encoded === null) return undefined;
  try {
    return parseMetadata(new TextDecoder().decode(Uint8Array.fromBase64(encoded)));
  } catch {
    return undefined;
  }
}

export function contentLength(request: Request): number | undefined {
  const value = request.headers.get("content-length");
  return value === null ? undefined : Number(value);
}

/** Returns the body as a stream that fails when the client stalls; null where the request has none. */
export function bodyOf(request: Request): ReadableStream<Uint8Array<ArrayBuffer>> | null {
  return request.body ? ReadableStream.from(chunks(request)) as ReadableStream<Uint8Array<ArrayBuffer>> : null;
}

/** Reads a JSON object of at most 1 MB; an empty body is an empty object. */
export async function readJson(request: Request): Promise<Record<string, unknown>> {
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let size = 0;
  for await (const chunk of chunks(request)) {
    size += chunk.byteLength;
    if (size > LARGEST_JSON) throw refusals.tooLarge("body");
    parts.push(new Uint8Array(chunk));
  }
  const text = await new Blob(parts).text();
  const value = text.trim() === "" ? {} : parse(text);
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw refusals.invalidRequest("The body must be a JSON object");
  }
  return value as Record<string, unknown>;
}

/**
 * Reads what nobody read of a body, for at most ten seconds, and lets go of it.
 *
 * A client that is still sending when a refusal leaves would see a reset connection instead of it.
 */
export async function discard(request: Request): Promise<void> {
  const reader = readerOf(request);
  if (!reader) return;
  const drained = (async () => {
    while (!(await reader.read()).done);
  })();
  // A client that left, or stalled, is not told anything any more.
  await within(drained, DISCARD_MS).catch(() => {});
  await reader.cancel().catch(() => {});
}

type Reader = ReadableStreamDefaultReader<Uint8Array>;

// One reader a request: an upload that is refused half-way leaves it to `discard`.
const readers = new WeakMap<Request, Reader>();

function readerOf(request: Request): Reader | undefined {
  const known = readers.get(request) ?? request.body?.getReader();
  if (known) readers.set(request, known);
  return known;
}

async function* chunks(request: Request): AsyncGenerator<Uint8Array> {
  const reader = readerOf(request);
  if (!reader) return;
  for (;;) {
    const { done, value } = await within(reader.read(), IDLE_MS);
    if (done) return;
    yield value;
  }
}

async function within<T>(work: Promise<T>, milliseconds: number): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(refusals.timedOut()), milliseconds);
  });
  return await Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** Returns the JSON object in a text, undefined where it is none. */
export function parseMetadata(text: string): Record<string, unknown> | undefined {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw refusals.invalidRequest("The body is not JSON");
  }
}
