// Which names, sizes and types the Storage API accepts.

import { refusals } from "./errors.ts";

// What S3 calls safe, and what needs special handling there; nothing outside ASCII.
const KEY = /^[\w/!\-.*'() &$@=;:+,?]+$/;
const BUCKET = /^[\w!\-.*'() &$@=;:+,?]{1,100}$/;
// S3's own limit. The index on names holds 2,704 bytes.
const LONGEST_KEY = 1024;
const UNITS: Record<string, number> = { b: 1, kb: 1e3, mb: 1e6, gb: 1e9, kib: 2 ** 10, mib: 2 ** 20, gib: 2 ** 30 };

/** Returns an object's name, or refuses it: a name never becomes a path, and dot segments still are no names. */
export function objectName(value: unknown): string {
  if (typeof value !== "string" || value.length > LONGEST_KEY || !KEY.test(value)) {
    throw refusals.invalidKey(typeof value === "string" ? value.slice(0, LONGEST_KEY) : "");
  }
  if (value.split("/").some((segment) => segment === "." || segment === "..")) throw refusals.invalidKey(value);
  return value;
}

/** Returns the name of an object to read: SQL and older servers made what no upload may be called any more. */
export function storedName(value: string): string {
  if (value === "" || value.includes("\0")) throw refusals.noSuchKey();
  return value;
}

export function bucketName(value: unknown): string {
  if (typeof value !== "string" || !BUCKET.test(value)) throw refusals.invalidBucketName();
  return value;
}

/** Studio marks an empty folder by such an object; it must be empty and its type does not count. */
export function isFolderMarker(name: string): boolean {
  return name.endsWith(".emptyFolderPlaceholder");
}

export function isUuid(value: string): boolean {
  return /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i.test(value);
}

/** Refuses a type that the bucket does not list; `image/*` lists a family, and parameters do not count. */
export function requireMimeType(type: string, allowed: string[] | null): void {
  if (!allowed || allowed.length === 0) return;
  const plain = withoutParameters(type);
  const [family, kind] = plain.split("/");
  if (!family || !kind) throw refusals.invalidMimeType(type);
  const listed = allowed.some((entry) => {
    const wanted = entry.trim().toLowerCase();
    return wanted === plain || wanted === `${family}/*` || wanted === "*/*";
  });
  if (!listed) throw refusals.invalidMimeType(type);
}

export function withoutParameters(type: string): string {
  return type.split(";", 1)[0].trim().toLowerCase();
}

/** Returns a bucket's limit in bytes from a number or a text such as `20MB`; null for none. */
export function sizeLimit(value: unknown): number | null {
  if (value === null || value === undefined) return null;
  const match = /^(\d+(?:\.\d+)?)\s*([kmg]i?b|b)?$/i.exec(String(value).trim());
  if (!match) {
    throw refusals.invalidRequest("Invalid file size format, hint: use 20GB / 20MB / 30KB / 3B");
  }
  return Math.floor(Number(match[1]) * UNITS[(match[2] ?? "b").toLowerCase()]);
}
