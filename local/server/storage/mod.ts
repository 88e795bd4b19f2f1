// Supabase Storage as the clients know it, for the local stack: standard and resumable uploads, downloads, signed
// URLs, lists, move, copy, delete and buckets under /storage/v1. The S3 protocol is not here.

import { Blobs } from "./blobs.ts";
import {
  bucketLimits,
  createBucket,
  deleteBucket,
  emptyBucket,
  getBucket,
  listBuckets,
  updateBucket,
} from "./buckets.ts";
import { Callers } from "./caller.ts";
import { ANONYMOUS, connect, SERVICE } from "./database.ts";
import { asRefusal, refusals } from "./errors.ts";
import { contentLength, discard, metadataHeader, readJson, readUpload } from "./incoming.ts";
import { listFolder, listPage, whole } from "./listing.ts";
import { bucketName, isFolderMarker, objectName, requireMimeType, storedName } from "./names.ts";
import {
  copyObject,
  deleteObjects,
  findNames,
  findObject,
  moveObject,
  probeMetadata,
  probeUpload,
  type Store,
  storeObject,
  type Target,
} from "./objects.ts";
import { ResumableUploads } from "./resumable.ts";
import { describe, serveBytes } from "./serving.ts";
import { Signer } from "./signing.ts";

export interface StorageOptions {
  /** Of the role supabase_storage_admin. */
  databaseUrl: string;
  /** Where the bytes are kept; made if it is missing. */
  directory: string;
  jwtSecret: string;
  publishableKey: string;
  secretKey: string;
  /** The largest upload in bytes, whatever its bucket allows: 50 MiB, as a new project has it. */
  fileSizeLimit?: number;
}

const MOUNT = "/storage/v1";
const UPLOAD_URL_SECONDS = 2 * 3600;
const LONGEST_EXPIRY_SECONDS = 10 * 365 * 86_400;
const MOST_NAMES = 1000;

/** Makes the handler for everything under /storage/v1. It starts by removing files that a crash left behind. */
export function createStorage(options: StorageOptions): (request: Request) => Promise<Response> {
  const api = new StorageApi(options);
  return (request) => api.handle(request);
}

/** A request's method, and its path's segments decoded: what stands behind /object or /bucket. */
interface Route {
  request: Request;
  query: URLSearchParams;
  first: string;
  rest: string[];
}

class StorageApi {
  #store: Store;
  #callers: Callers;
  #downloads: Signer;
  #uploads: Signer;
  #largest: number;
  #resumable: ResumableUploads;

  constructor(options: StorageOptions) {
    this.#store = { database: connect(options.databaseUrl), blobs: new Blobs(options.directory) };
    this.#callers = new Callers(options);
    this.#downloads = new Signer(options.jwtSecret, "storage download");
    this.#uploads = new Signer(options.jwtSecret, "storage upload");
    this.#largest = options.fileSizeLimit ?? 50 * 2 ** 20;
    const unfinished = `${options.directory}/resumable`;
    this.#resumable = new ResumableUploads(this.#store, this.#callers, this.#uploads, this.#largest, unfinished);
    this.#store.blobs.sweep(this.#store.database).then(
      (removed) => removed > 0 && console.info(`storage: removed ${removed} files that no object refers to`),
      (thrown) => console.warn(`storage: files without an object were not looked for: ${thrown.message}`),
    );
  }

  async handle(request: Request): Promise<Response> {
    const url = new URL(request.url);
    try {
      return await this.#route(request, url);
    } catch (thrown) {
      const refusal = asRefusal(thrown);
      if (refusal.statusCode >= 500) {
        const cause = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : "unknown";
        console.error(`storage: ${request.method} ${url.pathname} failed: ${cause}`);
      }
      return refusal.response();
    } finally {
      await discard(request);
    }
  }

  async #route(request: Request, url: URL): Promise<Response> {
    if (!url.pathname.startsWith(`${MOUNT}/`)) throw refusals.noSuchRoute(request.method, url.pathname);
    const [resource, first = "", ...rest] = decoded(url.pathname.slice(MOUNT.length + 1));
    const route = { request, query: url.searchParams, first, rest };
    if (resource === "status" && request.method === "GET") return new Response(null, { status: 200 });
    if (resource === "upload" && first === "resumable") {
      return await this.#resumable.handle(request, rest[0] === "sign");
    }
    const answer = resource === "bucket"
      ? await this.#bucket(route)
      : resource === "object"
      ? await this.#object(route)
      : null;
    if (!answer) throw refusals.noSuchRoute(request.method, url.pathname);
    return answer;
  }

  async #bucket({ request, query, first: id, rest }: Route): Promise<Response | null> {
    const { database } = this.#store;
    const caller = await this.#callers.identify(request);
    const route = `${request.method} ${id ? "id" : ""}${rest.map((part) => `/${part}`).join("")}`;
    switch (route) {
      case "GET ":
        return Response.json(await listBuckets(database, caller, query));
      case "POST ":
        return Response.json(await createBucket(database, caller, await readJson(request)));
      case "GET id":
        return Response.json(await getBucket(database, caller, bucketName(id)));
      case "PUT id":
        return Response.json(await updateBucket(database, caller, bucketName(id), await readJson(request)));
      case "DELETE id":
        return Response.json(await deleteBucket(database, caller, bucketName(id)));
      case "POST id/empty":
        return Response.json(await emptyBucket(this.#store, caller, bucketName(id)));
      default:
        return null;
    }
  }

  // Fixed words win over a bucket of the same name, as on the real server.
  async #object(route: Route): Promise<Response | null> {
    const { request, first, rest } = route;
    switch (request.method) {
      case "POST":
        if (first === "list" && rest.length === 1) return await this.#list(route);
        if (first === "list-v2" && rest.length === 1) return await this.#list(route);
        if (first === "move" && rest.length === 0) return await this.#move(route);
        if (first === "copy" && rest.length === 0) return await this.#copy(route);
        if (first === "sign" && rest.length === 1) return await this.#signMany(route);
        if (first === "sign") return await this.#sign(route);
        if (first === "upload" && rest[0] === "sign") return await this.#signUpload(route);
        return await this.#upload(route, "storage.object.upload");
      case "PUT":
        if (first === "upload" && rest[0] === "sign") return await this.#uploadSigned(route);
        return await this.#upload(route, "storage.object.upload_update");
      case "GET":
      case "HEAD":
        if (first === "sign") return await this.#downloadSigned(route);
        if (first === "info") return await this.#info(route);
        if (first === "public") return await this.#download(inner(route), true);
        if (first === "authenticated") return await this.#download(inner(route), false);
        return await this.#download(route, false);
      case "DELETE":
        return rest.length === 0 ? await this.#deleteMany(route) : await this.#deleteOne(route);
      default:
        return null;
    }
  }

  async #upload(route: Route, operation: string): Promise<Response> {
    const { request } = route;
    const caller = await this.#callers.identify(request);
    const upsert = operation.endsWith("update") || request.headers.get("x-upsert") === "true";
    return await this.#receive(request, { ...place(route), caller, operation, owner: caller.sub, upsert });
  }

  async #uploadSigned(route: Route): Promise<Response> {
    const { bucket, name } = place(inner(inner(route)));
    const token = await this.#uploads.verify(route.query.get("token") ?? "");
    if (token.url !== `${bucket}/${name}`) throw refusals.invalidSignature();
    const owner = typeof token.owner === "string" ? token.owner : undefined;
    const operation = "storage.object.upload_signed";
    const target = { bucket, name, caller: SERVICE, operation, owner, upsert: token.upsert === true };
    return await this.#receive(route.request, target);
  }

  async #receive(request: Request, target: Target): Promise<Response> {
    const bucket = await bucketLimits(this.#store.database, target.bucket);
    if (!bucket) throw refusals.noSuchBucket();
    const upload = await readUpload(request);
    const marker = isFolderMarker(target.name);
    if (!marker) requireMimeType(upload.mimetype, bucket.allowedMimeTypes);
    const limit = marker ? 0 : Math.min(bucket.fileSizeLimit ?? this.#largest, this.#largest);
    const id = await storeObject(this.#store, target, upload, limit);
    return Response.json({ Key: `${target.bucket}/${target.name}`, Id: id });
  }

  async #download(route: Route, publicOnly: boolean): Promise<Response> {
    const object = await this.#readable(route, publicOnly, "get");
    return await serveBytes(this.#store.blobs, object, route.request, { download: route.query.get("download") });
  }

  async #info(route: Route): Promise<Response> {
    const kind = route.rest[0];
    const marked = (kind === "public" || kind === "authenticated") && route.rest.length > 2;
    const object = await this.#readable(inner(marked ? inner(route) : route), marked && kind === "public", "info");
    return describe(object);
  }

  /** Finds an object for reading: anybody's in a public bucket, else one that the policies show to the caller. */
  async #readable(route: Route, publicOnly: boolean, verb: string) {
    const [bucket, name] = [bucketName(route.first), storedName(route.rest.join("/"))];
    const caller = await this.#callers.identifyOrNull(route.request);
    const { database } = this.#store;
    const limits = await bucketLimits(database, bucket);
    if (!limits || !limits.public && (publicOnly || !caller)) throw refusals.noSuchBucket();
    const operation = `storage.object.${verb}_${publicOnly ? "public" : "authenticated"}`;
    return await findObject(database, limits.public ? SERVICE : caller ?? ANONYMOUS, operation, bucket, name);
  }

  async #downloadSigned(route: Route): Promise<Response> {
    const { bucket, name } = place(inner(route));
    const token = await this.#downloads.verify(route.query.get("token") ?? "");
    if (token.url !== `${bucket}/${name}`) throw refusals.invalidSignature();
    const object = await findObject(this.#store.database, SERVICE, "storage.object.get_signed", bucket, name);
    const expires = new Date(Number(token.exp) * 1000);
    return await serveBytes(this.#store.blobs, object, route.request, {
      expires,
      download: route.query.get("download"),
    });
  }

  async #sign(route: Route): Promise<Response> {
    const { bucket, name } = place(inner(route));
    const caller = await this.#callers.identify(route.request);
    const seconds = expiry((await readJson(route.request)).expiresIn);
    await findObject(this.#store.database, caller, "storage.object.sign", bucket, name);
    return Response.json({ signedURL: await this.#signedUrl(bucket, name, seconds) });
  }

  async #signMany(route: Route): Promise<Response> {
    const bucket = bucketName(route.rest[0]);
    const caller = await this.#callers.identify(route.request);
    const body = await readJson(route.request);
    const seconds = expiry(body.expiresIn);
    const paths = names(body.paths, "paths");
    const found = await findNames(this.#store.database, caller, "storage.object.sign_many", bucket, paths);
    const error = "Either the object does not exist or you do not have access to it";
    const signed = paths.map(async (path) =>
      found.has(path)
        ? { error: null, path, signedURL: await this.#signedUrl(bucket, path, seconds) }
        : { error, path, signedURL: null }
    );
    return Response.json(await Promise.all(signed));
  }

  // The path stays as it is: the clients encode what they get.
  async #signedUrl(bucket: string, name: string, seconds: number): Promise<string> {
    return `/object/sign/${bucket}/${name}?token=${await this.#downloads.sign({ url: `${bucket}/${name}` }, seconds)}`;
  }

  async #signUpload(route: Route): Promise<Response> {
    const { bucket, name } = place(inner(inner(route)));
    const { request } = route;
    const caller = await this.#callers.identify(request);
    const upsert = request.headers.get("x-upsert") === "true";
    const target = { bucket, name, caller, operation: "storage.object.sign_upload_url", owner: caller.sub, upsert };
    const metadata = probeMetadata(request.headers.get("content-type"), contentLength(request));
    await probeUpload(this.#store, target, metadata);
    const token = await this.#uploads.sign({ url: `${bucket}/${name}`, owner: caller.sub, upsert }, UPLOAD_URL_SECONDS);
    return Response.json({ url: `/object/upload/sign/${bucket}/${name}?token=${token}`, token });
  }

  async #list(route: Route): Promise<Response> {
    const list = route.first === "list" ? listFolder : listPage;
    const caller = await this.#callers.identify(route.request);
    const bucket = bucketName(route.rest[0]);
    return Response.json(await list(this.#store.database, caller, bucket, await readJson(route.request)));
  }

  async #move({ request }: Route): Promise<Response> {
    const caller = await this.#callers.identify(request);
    const { from, to } = ends(await readJson(request));
    await moveObject(this.#store, caller, from, to);
    return Response.json({ message: "Successfully moved" });
  }

  async #copy({ request }: Route): Promise<Response> {
    const caller = await this.#callers.identify(request);
    const body = await readJson(request);
    const { from, to } = ends(body);
    const upsert = request.headers.get("x-upsert") === "true";
    const target = { ...to, caller, operation: "storage.object.copy", owner: caller.sub, upsert };
    const replacing = body.copyMetadata === false
      ? { metadata: replacedMetadata(body.metadata), userMetadata: metadataHeader(request) }
      : undefined;
    const copy = await copyObject(this.#store, target, from, replacing);
    return Response.json({ Id: copy.id, Key: `${to.bucket}/${to.name}`, ...copy });
  }

  async #deleteMany(route: Route): Promise<Response> {
    const caller = await this.#callers.identify(route.request);
    const prefixes = names((await readJson(route.request)).prefixes, "prefixes");
    const operation = "storage.object.delete_many";
    return Response.json(await deleteObjects(this.#store, caller, operation, bucketName(route.first), prefixes));
  }

  async #deleteOne(route: Route): Promise<Response> {
    const caller = await this.#callers.identify(route.request);
    const { bucket, name } = place(route);
    const deleted = await deleteObjects(this.#store, caller, "storage.object.delete", bucket, [name]);
    if (deleted.length === 0) throw refusals.noSuchKey();
    return Response.json({ message: "Successfully deleted" });
  }
}

function decoded(path: string): string[] {
  try {
    return path.split("/").map(decodeURIComponent);
  } catch {
    throw refusals.invalidRequest("The path is not valid percent-encoding");
  }
}

/** The same route one segment further. */
function inner(route: Route): Route {
  const [first = "", ...rest] = route.rest;
  return { ...route, first, rest };
}

function place(route: Route): { bucket: string; name: string } {
  return { bucket: bucketName(route.first), name: objectName(route.rest.join("/")) };
}

function ends(body: Record<string, unknown>) {
  const bucket = bucketName(body.bucketId);
  const from = { bucket, name: objectName(body.sourceKey) };
  return { from, to: { bucket: bucketName(body.destinationBucket ?? bucket), name: objectName(body.destinationKey) } };
}

function names(value: unknown, field: string): string[] {
  if (!Array.isArray(value) || value.length === 0 || value.length > MOST_NAMES) {
    throw refusals.invalidParameter(`${field} must be a list of 1 to ${MOST_NAMES} names`);
  }
  if (!value.every((name) => typeof name === "string" && !name.includes("\0"))) {
    throw refusals.invalidParameter(`${field} must hold names only`);
  }
  return value;
}

function replacedMetadata(value: unknown): Record<string, unknown> {
  const given = typeof value === "object" && value !== null ? value as Record<string, unknown> : {};
  const known = ["cacheControl", "mimetype"].filter((key) => typeof given[key] === "string");
  return Object.fromEntries(known.map((key) => [key, given[key]]));
}

function expiry(value: unknown): number {
  if (value === undefined || value === null) throw refusals.invalidParameter("expiresIn is missing");
  return whole(value, "expiresIn", 0, 1, LONGEST_EXPIRY_SECONDS);
}
