// Runs storage calls on the real supabase-js: one JSON request a line on standard input, one JSON answer a line on
// standard output. Values that JSON lacks travel as {$blob, type}, {$bytes} and {$form}, their contents in base64.
import { createClient, type SupabaseClient } from "@supabase/supabase-js";

interface Request {
  key: string;
  token: string | null;
  /** Null calls the bucket functions. */
  bucket: string | null;
  method: string;
  arguments: unknown[];
}

const url = Deno.args[0];
const clients = new Map<string, SupabaseClient>();

function client(key: string, token: string | null): SupabaseClient {
  const name = `${key} ${token}`;
  const accessToken = token === null ? {} : { accessToken: () => Promise.resolve(token) };
  const made = clients.get(name) ?? createClient(url, key, { ...accessToken, auth: { persistSession: false } });
  clients.set(name, made);
  return made;
}

function revive(value: unknown): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  const given = value as { $blob?: string; $bytes?: string; $form?: string; type?: string };
  if (given.$bytes !== undefined) return Uint8Array.fromBase64(given.$bytes);
  if (given.$blob !== undefined) return new Blob([Uint8Array.fromBase64(given.$blob)], { type: given.type ?? "" });
  if (given.$form !== undefined) {
    const form = new FormData();
    form.append("file", new File([Uint8Array.fromBase64(given.$form)], "a file.txt", { type: given.type ?? "" }));
    return form;
  }
  return value;
}

async function answer(line: string): Promise<unknown> {
  const request: Request = JSON.parse(line);
  const { storage } = client(request.key, request.token);
  const api = request.bucket === null ? storage : storage.from(request.bucket);
  const call = api as unknown as Record<string, (...args: unknown[]) => Promise<{ data: unknown; error: unknown }>>;
  try {
    const { data, error } = await call[request.method](...request.arguments.map(revive));
    if (!error) return { data: data instanceof Blob ? (await data.bytes()).toBase64() : data, error: null };
    const { message, statusCode, code } = error as { message: string; statusCode?: string; code?: string };
    return { data: null, error: { message, statusCode, code } };
  } catch (thrown) {
    return { data: null, error: { message: String(thrown) } };
  }
}

const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream());
let rest = "";
for await (const text of lines) {
  const parts = (rest + text).split("\n");
  rest = parts.pop() ?? "";
  for (const line of parts) {
    await Deno.stdout.write(new TextEncoder().encode(JSON.stringify(await answer(line)) + "\n"));
  }
}
