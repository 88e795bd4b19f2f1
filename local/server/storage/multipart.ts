// A form as it arrives: its fields up to the first file, then the file as a stream.
//
// `request.formData()` would hold the whole file in memory. Fields that follow the file are not read, as on the real
// server; every client sends them before it.

import { Buffer } from "node:buffer";
import { refusals } from "./errors.ts";

const LONGEST_HEADER = 16 * 1024;
const LARGEST_FIELD = 1024 * 1024;
const MOST_FIELDS = 32;
const CRLF = "\r\n";

export interface Form {
  fields: Map<string, string>;
  /** The file's declared type, or null where its part names none. */
  type: string | null;
  bytes: AsyncIterable<Uint8Array>;
}

/** Reads a form up to its first file; refuses one that holds none. */
export async function readForm(body: AsyncIterable<Uint8Array>, contentType: string): Promise<Form> {
  const match = /boundary=(?:"([^"]+)"|([^;\s]+))/i.exec(contentType);
  const boundary = match?.[1] ?? match?.[2];
  if (!boundary || boundary.length > 200) throw refusals.invalidRequest("The form names no boundary");
  const reader = new FormReader(body, boundary);
  const fields = new Map<string, string>();
  while (await reader.nextPart()) {
    const header = await reader.header();
    const disposition = header.get("content-disposition") ?? "";
    if (/;\s*filename\*?=/i.test(disposition)) {
      return { fields, type: header.get("content-type") ?? null, bytes: reader.content() };
    }
    if (fields.size >= MOST_FIELDS) throw refusals.tooLarge("form");
    const name = /;\s*name="([^"]*)"/i.exec(disposition)?.[1] ?? "";
    fields.set(name, await text(reader.content()));
  }
  throw refusals.invalidRequest("No content provided");
}

async function text(content: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = [];
  let size = 0;
  for await (const chunk of content) {
    size += chunk.byteLength;
    if (size > LARGEST_FIELD) throw refusals.tooLarge("form's field");
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

class FormReader {
  #source: AsyncIterator<Uint8Array>;
  #delimiter: Buffer;
  // The first delimiter has no line before it; this makes it look like the others.
  #buffer: Buffer = Buffer.from(CRLF);
  #started = false;

  constructor(body: AsyncIterable<Uint8Array>, boundary: string) {
    this.#source = body[Symbol.asyncIterator]();
    this.#delimiter = Buffer.from(`${CRLF}--${boundary}`);
  }

  /** Moves to the next part; false after the last. The part before it must have been read to its end. */
  async nextPart(): Promise<boolean> {
    if (!this.#started) {
      this.#started = true;
      let preamble = 0;
      for await (const chunk of this.content()) {
        preamble += chunk.byteLength;
        if (preamble > LONGEST_HEADER) throw malformed();
      }
    }
    await this.#atLeast(2);
    if (this.#buffer.toString("latin1", 0, 2) === "--") return false;
    const end = await this.#find(CRLF, LONGEST_HEADER);
    // The line's end stays: a part without headers begins with the empty line itself.
    this.#buffer = this.#buffer.subarray(end);
    return true;
  }

  async header(): Promise<Map<string, string>> {
    const end = await this.#find(CRLF + CRLF, LONGEST_HEADER);
    const lines = this.#buffer.toString("utf8", 0, end).split(CRLF);
    this.#buffer = this.#buffer.subarray(end + 4);
    const header = new Map<string, string>();
    for (const line of lines) {
      const colon = line.indexOf(":");
      if (colon > 0) header.set(line.slice(0, colon).trim().toLowerCase(), line.slice(colon + 1).trim());
    }
    return header;
  }

  /** Yields what stands before the next delimiter and leaves the reader behind it. */
  async *content(): AsyncGenerator<Uint8Array> {
    for (;;) {
      const at = this.#buffer.indexOf(this.#delimiter);
      if (at >= 0) {
        if (at > 0) yield this.#buffer.subarray(0, at);
        this.#buffer = this.#buffer.subarray(at + this.#delimiter.length);
        return;
      }
      // The tail may be the beginning of a delimiter whose rest is still to come.
      const sure = this.#buffer.length - this.#delimiter.length + 1;
      if (sure > 0) {
        const chunk = this.#buffer.subarray(0, sure);
        this.#buffer = this.#buffer.subarray(sure);
        yield chunk;
      }
      await this.#fill();
    }
  }

  async #find(text: string, limit: number): Promise<number> {
    for (;;) {
      const at = this.#buffer.indexOf(text);
      if (at >= 0) return at;
      if (this.#buffer.length > limit) throw malformed();
      await this.#fill();
    }
  }

  async #atLeast(length: number): Promise<void> {
    while (this.#buffer.length < length) await this.#fill();
  }

  async #fill(): Promise<void> {
    const { done, value } = await this.#source.next();
    if (done) throw malformed();
    const chunk = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    this.#buffer = this.#buffer.length === 0 ? chunk : Buffer.concat([this.#buffer, chunk]);
  }
}

function malformed() {
  return refusals.invalidRequest("The form is malformed or ends early");
}
