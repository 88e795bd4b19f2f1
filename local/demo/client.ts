// The demo's people: the real supabase-js, told what to do by one line of JSON each on standard input.
//
//   {"id": 1, "who": "owner", "do": "signUp", ...}  →  {"id": 1, "ok": ...}  or  {"id": 1, "error": {code, message}}
//
// and what is heard of followed documents, as it comes: {"told": {document, state}}, {"told": {document, progress}}.
// Requests overlap. URL and publishable key come by the environment; there is no other key here, so all of it
// happens under row-level security. Passwords are made here and never leave.
import { createClient, type SupabaseClient } from "@supabase/supabase-js";

const BUCKET = "documents";
// The API gives at most this many rows at a time (supabase/config.toml).
const PAGE = 1000;

interface Failure {
  code?: string;
  error?: string;
  statusCode?: string;
  status?: number;
  message?: string;
  hint?: string;
}

class Refused extends Error {
  constructor(readonly code: string, message: string) {
    super(message);
  }
}

function setting(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new Error(`${name} is not set.`);
  return value;
}

function must<T>(answer: { data: T; error: Failure | null }): NonNullable<T> {
  const { data, error } = answer;
  if (error) {
    const code = error.code ?? error.error ?? error.statusCode ?? error.status ?? "unknown";
    throw new Refused(String(code), [error.message, error.hint].filter(Boolean).join(" ") || "no message");
  }
  return data as NonNullable<T>;
}

class Person {
  id = "";
  private readonly client: SupabaseClient;

  constructor() {
    this.client = createClient(setting("SUPABASE_URL"), setting("SUPABASE_PUBLISHABLE_KEY"), {
      auth: { persistSession: false },
    });
  }

  async signUp({ email }: { email: string }) {
    const { user, session } = must(await this.client.auth.signUp({ email, password: crypto.randomUUID() }));
    if (!user || !session) throw new Refused("no_session", "Signing up gave no session: is e-mail confirmation on?");
    this.id = user.id;
    return { id: user.id };
  }

  async upload({ path, name, contentType }: { path: string; name: string; contentType: string }) {
    // Deno's Blob is kept outside of the JavaScript heap; supabase-js sends it as multipart/form-data.
    const body = new Blob([await Deno.readFile(path)], { type: contentType });
    const object = must(
      await this.client.storage.from(BUCKET).upload(`${this.id}/${name}`, body, { contentType }),
    );
    return { id: object.id };
  }

  /** Every document of this person, with its newest job: what a progress display needs. */
  async progress() {
    const [documents, jobs] = await Promise.all([
      this.all("documents", "id,name,state,generation,title,page_count,chunk_count,error_code,error_message"),
      this.all("jobs", "id,document_id,generation,state,stage,progress,attempt,error_code,error_message"),
    ]);
    return { documents, jobs };
  }

  /** Follows a document on its channel until it is at its end. */
  follow({ document }: { document: string }) {
    const channel = this.client.channel(`document:${document}`, { config: { private: true } });
    channel.on("broadcast", { event: "progress" }, ({ payload: progress }) => {
      say({ told: { document, progress } });
      if (["completed", "cancelled", "discarded"].includes(progress.state)) void this.client.removeChannel(channel);
    });
    channel.subscribe((state) => say({ told: { document, state } }));
    return Promise.resolve(null);
  }

  /** Uploads, then looks every `every` ms until the document is ready; says how long each took, in ms. */
  async uploadToReady({ every, ...file }: { path: string; name: string; contentType: string; every: number }) {
    const began = performance.now();
    const { id } = await this.upload(file);
    const uploaded = performance.now() - began;
    for (;;) {
      const document = must(
        await this.client.from("documents").select("state,error_code,error_message").eq("id", id).single(),
      );
      if (document.state === "ready") return { id, uploaded, ready: performance.now() - began };
      if (document.state !== "pending" && document.state !== "processing") {
        throw new Refused(document.error_code, document.error_message);
      }
      await new Promise((wake) => setTimeout(wake, every));
    }
  }

  async search({ query, embedding, count }: { query: string; embedding: number[]; count: number }) {
    return must(await this.client.rpc("search", { query, query_embedding: embedding, match_count: count }));
  }

  /** The pages behind a document's published chunks, first to last, for citing. */
  async pages({ document, first, last }: { document: string; first: number; last: number }) {
    const { published_parse_id } = must(
      await this.client.from("documents").select("published_parse_id").eq("id", document).single(),
    );
    return must(
      await this.client.from("pages").select("page,markdown").eq("parse_id", published_parse_id)
        .gte("page", first).lte("page", last).order("page"),
    );
  }

  /** Headings of a document in the order of its chunks. */
  async headings({ document }: { document: string }) {
    const chunks = must(
      await this.client.from("chunks").select("heading_path").eq("document_id", document).order("ordinal").limit(PAGE),
    );
    return chunks.flatMap((chunk) => chunk.heading_path.slice(-1));
  }

  /** How many rows and objects this person sees, by table; `owner` names whose folder is listed and read. */
  async counts({ owner, object }: { owner: string; object: string }) {
    const seen: Record<string, number> = {};
    for (const table of ["documents", "jobs", "job_events", "pages", "chunks"]) {
      const { count, error } = await this.client.from(table).select("*", { count: "exact", head: true });
      must({ data: true, error });
      if (count === null) throw new Refused("no_count", `Counting the rows of ${table} gave no number.`);
      seen[table] = count;
    }
    const bucket = this.client.storage.from(BUCKET);
    seen["objects listed"] = must(await bucket.list(owner, { limit: PAGE })).length;
    const { data } = await bucket.download(`${owner}/${object}`);
    seen["objects read"] = data ? 1 : 0;
    return seen;
  }

  /** Whether Storage lets this person write into the folder of `owner`. */
  async mayWriteTo({ owner }: { owner: string }) {
    const body = new Blob(["Not mine."], { type: "text/plain" });
    const { error } = await this.client.storage.from(BUCKET).upload(`${owner}/intruder.txt`, body);
    return error === null;
  }

  private async all(table: string, columns: string): Promise<unknown[]> {
    const rows: unknown[] = [];
    for (;;) {
      const page = must(
        await this.client.from(table).select(columns).order("id").range(rows.length, rows.length + PAGE - 1),
      );
      rows.push(...page);
      if (page.length < PAGE) return rows;
    }
  }
}

const people: Record<string, Person> = {};
const ALLOWED = new Set([
  "signUp",
  "upload",
  "follow",
  "progress",
  "uploadToReady",
  "search",
  "pages",
  "headings",
  "counts",
  "mayWriteTo",
]);

interface Request {
  id: number;
  who: string;
  do: string;
}

function say(answer: Record<string, unknown>): void {
  const line = new TextEncoder().encode(JSON.stringify(answer) + "\n");
  for (let written = 0; written < line.length;) written += Deno.stdout.writeSync(line.subarray(written));
}

async function answer({ id, who, do: what, ...given }: Request): Promise<void> {
  try {
    if (!ALLOWED.has(what)) throw new Error(`There is no action ${what}.`);
    const person = people[who] ??= new Person();
    const action = person[what as keyof Person] as unknown as (given: unknown) => Promise<unknown>;
    say({ id, ok: await action.call(person, given) });
  } catch (error) {
    const code = error instanceof Refused ? error.code : "client_failed";
    say({ id, error: { code, message: error instanceof Error ? error.message : String(error) } });
  }
}

let rest = "";
for await (const text of Deno.stdin.readable.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + text).split("\n");
  rest = lines.pop() ?? "";
  for (const line of lines) void answer(JSON.parse(line));
}
Deno.exit(0);
