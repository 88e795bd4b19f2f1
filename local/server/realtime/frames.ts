// The two protocols in which clients speak: 1.0.0, an object as text, of the Python client; and 2.0.0 of supabase-js,
// arrays as text with broadcasts in binary frames.

export interface Message {
  joinRef: string | null;
  ref: string | null;
  topic: string;
  event: string;
  payload: Record<string, unknown>;
}

/** A broadcast's `payload` is JSON, or bytes, which only protocol 2.0.0 can carry. */
export interface Broadcast {
  event: string;
  payload: unknown;
  meta?: Record<string, unknown>;
}

export interface Protocol {
  /** Reads a client's frame; throws where it is none. */
  decode(frame: string | ArrayBuffer): Message;
  encode(message: Message): string;
  /** Returns null where the protocol cannot carry it. */
  broadcast(topic: string, said: Broadcast): string | Uint8Array<ArrayBuffer> | null;
}

const PUSH = 3;
const BROADCAST = 4;
const JSON_ENCODING = 1;
const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true });

const v1: Protocol = {
  decode(frame) {
    if (typeof frame !== "string") throw new Error("a binary frame in protocol 1.0.0");
    const { topic, event, payload, ref, join_ref } = JSON.parse(frame);
    return checked({ joinRef: join_ref ?? null, ref: ref ?? null, topic, event, payload: payload ?? {} });
  },
  encode: ({ topic, event, payload, ref }) => JSON.stringify({ ref, topic, event, payload }),
  broadcast(topic, { event, payload, meta }) {
    if (payload instanceof Uint8Array) return null;
    const said = { event, payload, type: "broadcast", ...(meta && { meta }) };
    return JSON.stringify({ ref: null, topic, event: "broadcast", payload: said });
  },
};

const v2: Protocol = {
  decode(frame) {
    if (typeof frame !== "string") return decodePush(new Uint8Array(frame));
    const [joinRef, ref, topic, event, payload] = JSON.parse(frame);
    return checked({ joinRef, ref, topic, event, payload: payload ?? {} });
  },
  encode: ({ joinRef, ref, topic, event, payload }) => JSON.stringify([joinRef, ref, topic, event, payload]),
  broadcast(topic, { event, payload, meta }) {
    const bytes = payload instanceof Uint8Array;
    const head = [topic, event, meta ? JSON.stringify(meta) : ""].map((text) => encoder.encode(text));
    if (head.some((part) => part.length > 255)) return null; // a length is one byte
    const body = bytes ? payload : encoder.encode(JSON.stringify(payload ?? {}));
    const lengths = Uint8Array.from([BROADCAST, ...head.map((part) => part.length), bytes ? 0 : JSON_ENCODING]);
    return joined([lengths, ...head, body]);
  },
};

/** By the `vsn` of the address; clients that name none speak 1.0.0. */
export function protocol(version: string | null): Protocol | undefined {
  return { "1.0.0": v1, "2.0.0": v2 }[version ?? "1.0.0"];
}

function checked(message: Message): Message {
  if (typeof message.topic !== "string" || typeof message.event !== "string" || typeof message.payload !== "object") {
    throw new Error("a frame without topic, event or payload");
  }
  return message;
}

// 3, five lengths and the encoding, then what they are lengths of, then the payload.
function decodePush(frame: Uint8Array<ArrayBuffer>): Message {
  if (frame[0] !== PUSH || frame.length < 7) throw new Error("a binary frame that is no push");
  let offset = 7;
  const parts = [...frame.subarray(1, 6)].map((length) => {
    const part = frame.subarray(offset, offset + length);
    if (part.length !== length) throw new Error("a binary frame that ends early");
    offset += length;
    return decoder.decode(part);
  });
  const [joinRef, ref, topic, event] = parts;
  const body = frame.slice(offset);
  const payload = frame[6] === JSON_ENCODING ? JSON.parse(decoder.decode(body)) : body;
  return { joinRef, ref, topic, event: "broadcast", payload: { type: "broadcast", event, payload } };
}

function joined(parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    all.set(part, offset);
    offset += part.length;
  }
  return all;
}
