// Unfinished uploads: the bytes so far, and what was said when each was begun.
//
// Both files of an upload are named by the version that it will be; its id, which clients see in the upload's
// address, is `bucket/name/version`. What a finished upload said stays for a day: a client whose last answer was
// lost asks again and must hear that everything arrived, or it would send all of it a second time.

import { DataStore, ERRORS, Upload } from "@tus/server";
import { isUuid } from "./names.ts";

/** How long an upload may take from its creation on; a hosted project gives it as long. */
export const EXPIRY_MS = 24 * 3_600_000;

interface Said {
  id: string;
  size?: number;
  metadata?: Record<string, string | null>;
  creation_date?: string;
  finished?: boolean;
}

export class Partials extends DataStore {
  /** Uploads whose bytes are all here and whose row is being written. */
  #ending = new Map<string, Promise<void>>();

  constructor(private readonly directory: string) {
    super();
    this.extensions = ["creation", "creation-with-upload", "creation-defer-length", "termination", "expiration"];
    Deno.mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  override getExpiration(): number {
    return EXPIRY_MS;
  }

  override async create(upload: Upload): Promise<Upload> {
    await Deno.writeFile(this.#bytes(upload.id), new Uint8Array(), { createNew: true, mode: 0o600 });
    const { id, size, metadata, creation_date } = upload;
    await this.#say({ id, size, metadata, creation_date });
    return upload;
  }

  /** Appends what arrives, also of a stream that breaks off, and returns the new length. */
  override async write(stream: AsyncIterable<Uint8Array>, id: string, offset: number): Promise<number> {
    // Nothing follows the end: a part there is an empty one, of a client that did not hear of the end.
    if ((await this.said(id)).finished) return offset;
    const file = await Deno.open(this.#bytes(id), { write: true, append: true });
    try {
      for await (const chunk of stream) {
        for (let done = 0; done < chunk.byteLength;) done += await file.write(chunk.subarray(done));
        offset += chunk.byteLength;
      }
    } finally {
      file.close();
    }
    return offset;
  }

  override async declareUploadLength(id: string, size: number): Promise<void> {
    await this.#say({ ...await this.said(id), size });
  }

  /**
   * Returns an upload with the length that arrived.
   *
   * One whose bytes all arrived and whose row was never written is gone: a client that heard its length would take it
   * for finished.
   */
  override async getUpload(id: string): Promise<Upload> {
    await this.#ending.get(id);
    const said = await this.said(id);
    if (said.finished) return new Upload({ ...said, offset: said.size! });
    const { size: offset } = await Deno.stat(this.#bytes(id)).catch(missing);
    if (offset === said.size) throw ERRORS.FILE_NO_LONGER_EXISTS;
    return new Upload({ ...said, offset });
  }

  /** Hands the file of a whole upload to `keep`, once, however often it is called; forgets an upload it refuses. */
  async finish(id: string, keep: (path: string) => Promise<void>): Promise<void> {
    const running = this.#ending.get(id);
    if (running) return await running;
    const ending = (async () => {
      const said = await this.said(id);
      if (said.finished) return;
      try {
        await keep(this.#bytes(id));
      } catch (thrown) {
        await this.remove(id);
        throw thrown;
      }
      await this.#say({ ...said, size: said.size, finished: true });
    })();
    this.#ending.set(id, ending.catch(() => {}));
    try {
      await ending;
    } finally {
      this.#ending.delete(id);
    }
  }

  override async remove(id: string): Promise<void> {
    await Promise.all([this.#bytes(id), this.#words(id)].map((path) => Deno.remove(path).catch(ignoreMissing)));
  }

  /** Removes what no client can continue any more, finished ones' words included, and returns how many uploads. */
  override async deleteExpired(): Promise<number> {
    const expired = new Set<string>();
    for await (const entry of Deno.readDir(this.directory)) {
      const version = entry.name.replace(/\.json(\.new)?$/, "");
      if (!entry.isFile || !isUuid(version)) continue;
      const { mtime } = await Deno.stat(`${this.directory}/${entry.name}`).catch(() => ({ mtime: null }));
      // Bytes may be as young as the expiry allows; words are as old as the upload, or as its end.
      if (mtime && Date.now() - mtime.getTime() > EXPIRY_MS) {
        await Deno.remove(`${this.directory}/${entry.name}`).catch(ignoreMissing);
        expired.add(version);
      }
    }
    return expired.size;
  }

  /** Returns what was said of an upload; refuses an id that differs in anything from the one that was given out. */
  async said(id: string): Promise<Said> {
    const said: Said = JSON.parse(await Deno.readTextFile(this.#words(id)).catch(missing));
    if (said.id !== id) throw ERRORS.FILE_NOT_FOUND;
    return said;
  }

  // Whole or not at all, so that a crash leaves no half a sentence.
  async #say(said: Said): Promise<void> {
    const path = this.#words(said.id);
    await Deno.writeTextFile(`${path}.new`, JSON.stringify(said), { mode: 0o600 });
    await Deno.rename(`${path}.new`, path);
  }

  #bytes(id: string): string {
    return `${this.directory}/${versionOf(id)}`;
  }

  #words(id: string): string {
    return `${this.#bytes(id)}.json`;
  }
}

/** Returns the version in an upload's id; it is all of the id that may become part of a path. */
export function versionOf(id: string): string {
  const version = id.slice(id.lastIndexOf("/") + 1);
  if (!isUuid(version)) throw ERRORS.FILE_NOT_FOUND;
  return version.toLowerCase();
}

function missing(thrown: unknown): never {
  throw thrown instanceof Deno.errors.NotFound ? ERRORS.FILE_NOT_FOUND : thrown;
}

function ignoreMissing(thrown: unknown): void {
  if (!(thrown instanceof Deno.errors.NotFound)) throw thrown;
}
