// Resumable uploads by the TUS protocol under /upload/resumable, and under /upload/resumable/sign with a token that
// createSignedUploadUrl gave out.
//
// The row events are the recorded ones: a probe in the caller's role when an upload is created and again at every
// part, and one final write when its last byte has arrived.

import { type DataStore, MemoryLocker, Server, type Upload } from "@tus/server";
import { bucketLimits } from "./buckets.ts";
import type { Callers } from "./caller.ts";
import { ANONYMOUS, type Caller, SERVICE } from "./database.ts";
import { asRefusal, refusals } from "./errors.ts";
import { bodyOf, parseMetadata } from "./incoming.ts";
import { bucketName, isFolderMarker, objectName, requireMimeType } from "./names.ts";
import { finishUpload, probeMetadata, probeUpload, type Store, storedMetadata, type Target } from "./objects.ts";
import { Partials, versionOf } from "./partials.ts";
import type { Signer } from "./signing.ts";

const PATH = "/storage/v1/upload/resumable";
const OPERATIONS: Record<string, string> = { POST: "create", PATCH: "part", HEAD: "get", DELETE: "delete" };
const NO_TYPE = "application/octet-stream";

/** On whose behalf a request is handled. */
interface Asking {
  caller: Caller;
  owner?: string;
  upsert: boolean;
  operation: string;
  /** Whether a token decides instead of the caller. */
  signed: boolean;
}

type Metadata = Record<string, string | null> | undefined;

export class ResumableUploads {
  #partials: Partials;
  #server: Server;
  // The package hands its request to every hook, and nothing else of ours.
  #asking = new WeakMap<object, Asking>();

  constructor(
    private readonly store: Store,
    private readonly callers: Callers,
    private readonly tokens: Signer,
    private readonly largest: number,
    directory: string,
  ) {
    this.#partials = new Partials(directory);
    this.#server = new Server({
      path: PATH,
      datastore: this.#partials as DataStore,
      locker: new MemoryLocker(),
      disableTerminationForFinishedUploads: true,
      exposedHeaders: ["Upload-Expires", "Tus-Complete"],
      maxSize: (_, id) => id === null ? largest : this.#limit(id),
      namingFunction: (_, metadata) => idFor(metadata),
      generateUrl: (request, { proto, host, id }) => {
        const encoded = new TextEncoder().encode(id).toBase64({ alphabet: "base64url", omitPadding: true });
        return `${proto}://${host}${PATH}${this.#asking.get(request)!.signed ? "/sign" : ""}/${encoded}`;
      },
      getFileIdFromRequest: (_, last) => last === undefined ? undefined : decoded(last),
      onIncomingRequest: (request, id) => this.#admit(request, id),
      onUploadCreate: (_, upload) => this.#begin(upload),
      onUploadFinish: (request, upload) => this.#finish(request, upload),
      onResponseError: (_, thrown) => answer(thrown),
    });
    this.#partials.deleteExpired().then(
      (removed) => removed > 0 && console.info(`storage: removed ${removed} resumable uploads that expired`),
      (thrown) => console.warn(`storage: expired uploads were not looked for: ${thrown.message}`),
    );
  }

  /** Answers a request below PATH; `signed` says that it came to the path for tokens. */
  async handle(request: Request, signed: boolean): Promise<Response> {
    const open = signed || request.method === "OPTIONS";
    const caller = open ? ANONYMOUS : await this.callers.identify(request);
    const passed = new Request(request.url, {
      method: request.method,
      headers: request.headers,
      body: bodyOf(request),
    });
    this.#asking.set(passed, {
      caller,
      owner: caller.sub,
      upsert: request.headers.get("x-upsert") === "true",
      operation: `storage.tus.upload.${OPERATIONS[request.method] ?? "options"}${signed ? "_signed" : ""}`,
      signed,
    });
    return await this.#server.handleWeb(passed);
  }

  async #limit(id: string): Promise<number> {
    const limits = await bucketLimits(this.store.database, placeOf(id).bucket);
    if (!limits) throw refusals.noSuchBucket();
    return Math.min(limits.fileSizeLimit ?? this.largest, this.largest);
  }

  // Asking how much has arrived needs a caller and the address, which nobody can guess, and no more.
  async #admit(request: Request, id: string): Promise<void> {
    const asking = this.#asking.get(request)!;
    if (asking.signed) await this.#verify(request, asking, id);
    if (request.method === "HEAD" || request.method === "OPTIONS") return;
    const creating = request.method === "POST";
    const said = creating ? undefined : await this.#partials.said(id);
    const metadata = said ? said.metadata : metadataOf(request);
    const size = said ? said.size : lengthOf(request);
    const probed = probeMetadata(metadata?.contentType ?? null, size);
    await probeUpload(this.store, target(asking, id), probed, userMetadata(metadata));
  }

  async #verify(request: Request, asking: Asking, id: string): Promise<void> {
    const { bucket, name } = placeOf(id);
    const token = await this.tokens.verify(request.headers.get("x-signature") ?? "");
    if (token.url !== `${bucket}/${name}`) throw refusals.invalidSignature();
    asking.caller = SERVICE;
    asking.owner = typeof token.owner === "string" ? token.owner : undefined;
    asking.upsert = token.upsert === true;
  }

  async #begin(upload: Upload): Promise<{ metadata: Upload["metadata"] }> {
    const { bucket, name } = placeOf(upload.id);
    const limits = await bucketLimits(this.store.database, bucket);
    if (!limits) throw refusals.noSuchBucket();
    if (isFolderMarker(name)) {
      if (upload.size !== 0) throw refusals.tooLarge();
    } else {
      requireMimeType(upload.metadata?.contentType ?? NO_TYPE, limits.allowedMimeTypes);
    }
    const seconds = upload.metadata?.cacheControl ?? "";
    const cacheControl = /^-?\d+$/.test(seconds) ? `max-age=${seconds}` : "no-cache";
    return { metadata: { ...upload.metadata, cacheControl } };
  }

  async #finish(request: Request, upload: Upload): Promise<{ headers: Record<string, string> }> {
    await this.#partials.finish(upload.id, async (path) => {
      const version = versionOf(upload.id);
      const written = await this.store.blobs.adopt(path, version);
      const { contentType, cacheControl } = upload.metadata ?? {};
      const metadata = storedMetadata(written, contentType ?? NO_TYPE, cacheControl ?? "no-cache");
      const owned = target(this.#asking.get(request)!, upload.id);
      await finishUpload(this.store, owned, version, metadata, userMetadata(upload.metadata) ?? {});
    });
    return { headers: { "Tus-Complete": "1" } };
  }
}

function target({ caller, owner, upsert, operation }: Asking, id: string): Target {
  return { ...placeOf(id), caller, owner, upsert, operation };
}

function idFor(metadata: Metadata): string {
  return `${bucketName(metadata?.bucketName)}/${objectName(metadata?.objectName)}/${crypto.randomUUID()}`;
}

function placeOf(id: string): { bucket: string; name: string } {
  const [bucket, ...rest] = id.split("/");
  return { bucket: bucketName(bucket), name: objectName(rest.slice(0, -1).join("/")) };
}

function decoded(encoded: string): string | undefined {
  try {
    return new TextDecoder().decode(Uint8Array.fromBase64(encoded, { alphabet: "base64url" }));
  } catch {
    return undefined;
  }
}

function metadataOf(request: Request): Metadata {
  const pairs = (request.headers.get("upload-metadata") ?? "").split(",").map((pair) => pair.trim().split(" "));
  return Object.fromEntries(pairs.map(([key, value]) => {
    const bytes = Uint8Array.fromBase64(value ?? "");
    return [key, new TextDecoder().decode(bytes)];
  }));
}

function lengthOf(request: Request): number | undefined {
  const length = request.headers.get("upload-length");
  return length === null ? undefined : Number(length);
}

function userMetadata(metadata: Metadata): Record<string, unknown> | undefined {
  return metadata?.metadata ? parseMetadata(metadata.metadata) : undefined;
}

// The protocol's own refusals stay as they are; clients expect ours as a status and a line of text.
function answer(thrown: unknown): { status_code: number; body: string } | undefined {
  if (typeof thrown === "object" && thrown !== null && "status_code" in thrown) return undefined;
  const refusal = asRefusal(thrown);
  if (refusal.statusCode >= 500) {
    const cause = thrown instanceof Error ? `${thrown.name}: ${thrown.message}` : "unknown";
    console.error(`storage: a resumable upload failed: ${cause}`);
  }
  return { status_code: refusal.statusCode, body: refusal.message };
}
