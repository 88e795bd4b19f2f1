// The bytes: one immutable file a version, named by the version alone.
//
// An overwrite writes a new file, so whoever reads the old one reads it whole, and a failed write leaves it served.
// No text of a client ever becomes part of a path.

import { createHash } from "node:crypto";
import type { Database } from "./database.ts";
import { refusals } from "./errors.ts";
import { isUuid } from "./names.ts";

const CHUNK = 64 * 1024;
// A file without a row may be an upload in progress. None takes an hour.
const ORPHAN_AGE_MS = 3_600_000;
const SWEEP_BATCH = 20_000;

export interface Written {
  size: number;
  /** The MD5 in quotes, as the eTag is recorded. */
  eTag: string;
}

export class Blobs {
  constructor(private readonly directory: string) {
    Deno.mkdirSync(directory, { recursive: true, mode: 0o700 });
  }

  /** Streams bytes to the file of a version; leaves none behind when they exceed `limit` or end early. */
  async write(version: string, bytes: AsyncIterable<Uint8Array>, limit: number): Promise<Written> {
    const hash = createHash("md5");
    let size = 0;
    const file = await Deno.open(this.#path(version), { write: true, createNew: true, mode: 0o600 });
    try {
      for await (const chunk of bytes) {
        size += chunk.byteLength;
        if (size > limit) throw refusals.tooLarge();
        hash.update(chunk);
        for (let done = 0; done < chunk.byteLength;) done += await file.write(chunk.subarray(done));
      }
    } catch (thrown) {
      file.close();
      await this.remove(version);
      throw thrown;
    }
    file.close();
    return { size, eTag: `"${hash.digest("hex")}"` };
  }

  /** Makes a file of the same file system the one of a version, and reads it for its size and eTag. */
  async adopt(path: string, version: string): Promise<Written> {
    const hash = createHash("md5");
    let size = 0;
    const file = await Deno.open(path, { read: true });
    for await (const chunk of file.readable) {
      size += chunk.byteLength;
      hash.update(chunk);
    }
    await Deno.rename(path, this.#path(version));
    return { size, eTag: `"${hash.digest("hex")}"` };
  }

  /** Copies one version's bytes to another; refuses where the first is gone. */
  async copy(from: string, to: string): Promise<void> {
    try {
      await Deno.copyFile(this.#path(from), this.#path(to));
    } catch (thrown) {
      throw thrown instanceof Deno.errors.NotFound ? refusals.noSuchKey() : thrown;
    }
  }

  /** Opens a version for reading; null where its file is gone. */
  async open(version: string): Promise<Deno.FsFile | null> {
    try {
      return await Deno.open(this.#path(version), { read: true });
    } catch (thrown) {
      if (thrown instanceof Deno.errors.NotFound) return null;
      throw thrown;
    }
  }

  /** Removes the file of a version, where there is one. */
  async remove(version: string | null | undefined): Promise<void> {
    if (!version || !isUuid(version)) return;
    try {
      await Deno.remove(this.#path(version));
    } catch (thrown) {
      if (!(thrown instanceof Deno.errors.NotFound)) throw thrown;
    }
  }

  /**
   * Removes files that a crash left without a row, and returns how many.
   *
   * It keeps everything younger than an hour, everything that does not look like ours, and everything when the table
   * has no row at all: then this is more likely another database than an empty one.
   */
  async sweep(database: Database): Promise<number> {
    const [{ any }] = await database`select exists (select from storage.objects) as any`;
    if (!any) return 0;
    let removed = 0;
    let batch: string[] = [];
    const flush = async () => {
      const orphans = await database`
        select v as version from unnest(${batch}::text[]) as v
        where not exists (select from storage.objects o where o.version = v)`;
      for (const { version } of orphans) await this.remove(version);
      removed += orphans.length;
      batch = [];
    };
    for await (const entry of Deno.readDir(this.directory)) {
      if (!entry.isFile || !isUuid(entry.name)) continue;
      const { mtime } = await Deno.stat(this.#path(entry.name)).catch(() => ({ mtime: null }));
      if (!mtime || Date.now() - mtime.getTime() < ORPHAN_AGE_MS) continue;
      batch.push(entry.name);
      if (batch.length >= SWEEP_BATCH) await flush();
    }
    if (batch.length > 0) await flush();
    return removed;
  }

  #path(version: string): string {
    if (!isUuid(version)) throw refusals.noSuchKey();
    return `${this.directory}/${version.toLowerCase()}`;
  }
}

/** Streams `length` bytes of an open file from `start` on, and closes it at the end or when the reader leaves. */
export async function stream(file: Deno.FsFile, start: number, length: number): Promise<ReadableStream<Uint8Array>> {
  if (start > 0) await file.seek(start, Deno.SeekMode.Start);
  let left = length;
  return new ReadableStream({
    async pull(controller) {
      const buffer = new Uint8Array(Math.min(CHUNK, Math.max(left, 1)));
      const read = left === 0 ? null : await file.read(buffer);
      if (read === null) {
        file.close();
        controller.close();
        return;
      }
      left -= read;
      controller.enqueue(buffer.subarray(0, read));
    },
    cancel() {
      file.close();
    },
  }, { highWaterMark: 0 });
}
