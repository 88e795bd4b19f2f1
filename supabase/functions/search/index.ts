// Search for a signed-in user: POST …/search {query, match_count?, filters?} → {matches: […]}
//
// Embeds the query with the model that is active in the database and calls public.search as the caller, with their own
// token, so that row-level security decides what is found. Each search takes one out of its user's bucket and is
// written into a ledger.
//
//   400 what was asked is wrong, the message says what     401 nobody is signed in      405 not a POST
//   408 the body comes too slowly     413 it is over 128 KiB
//   422 the model does not take the query     429 too often, or the day's budget is used up
//   503 something behind it does not answer
import { answer, Refusal, refuse } from "../_shared/answer.ts";
import { readBody } from "../_shared/body.ts";
import { type Caller, callerOf } from "../_shared/caller.ts";
import { preflight, withCors } from "../_shared/cors.ts";
import { callDatabase, projectUrl } from "../_shared/project.ts";
import { embed, type Model } from "./embed.ts";
import { invalid, readSearch, type Search, tenantsOf } from "./request.ts";

// 4,000 characters and a thousand ids in each of two filters.
const MAX_BODY_BYTES = 128 * 1024;
const SECONDS = 10;

type Admission = Model & { refused: null; payer: string } | { refused: string; wait_seconds: number };

Deno.serve(async (request) => {
  const early = preflight(request, "POST");
  if (early) return early;
  try {
    return withCors(request, await respond(request));
  } catch (error) {
    if (error instanceof Refusal) return withCors(request, error.response());
    console.error(`search: ${error instanceof Error ? error.message : "failed"}`);
    return withCors(request, refuse(503, { "retry-after": "10" }));
  }
});

async function respond(request: Request): Promise<Response> {
  if (request.method !== "POST") return refuse(405, { allow: "POST, OPTIONS" });
  const caller = await callerOf(request);
  const pieces: Uint8Array[] = [];
  const read = await readBody(request, MAX_BODY_BYTES, (piece) => pieces.push(piece));
  if (read !== "whole") return refuse(read === "too slow" ? 408 : 413);
  const search = readSearch(new Uint8Array(await new Blob(pieces as BlobPart[]).arrayBuffer()));

  const admission = await callDatabase("admit_search", {
    user_id: caller.userId,
    tenant_ids: tenantsOf(search),
  }) as Admission;
  if (admission.refused !== null) throw tooMany(admission);
  if (!admission.model) throw new Error("no embedding model is active");
  const { vector, tokens } = await embed(search.query, admission);
  const [matches] = await Promise.all([searchAs(caller, search, vector), record(admission, tokens)]);
  return answer(200, { matches });
}

function tooMany({ refused, wait_seconds }: { refused: string; wait_seconds: number }): Refusal {
  const message = refused === "rate_limited"
    ? "These are too many searches a minute. Wait a little."
    : "The budget of the day is used up. Search goes on when the day ends (UTC).";
  return new Refusal(429, refused, message, { "retry-after": String(Math.max(1, wait_seconds)) });
}

async function searchAs(caller: Caller, search: Search, vector: number[]): Promise<unknown> {
  const response = await fetch(`${projectUrl()}/rest/v1/rpc/search`, {
    method: "POST",
    headers: { ...caller.headers, "content-type": "application/json" },
    body: JSON.stringify({ ...search, query_embedding: vector }),
    signal: AbortSignal.timeout(SECONDS * 1000),
    redirect: "error",
  });
  if (response.ok) return await response.json();
  const said = await response.json().catch(() => null);
  // What the search function itself says of its arguments is written for callers; nothing else is passed on.
  if (said?.code === "22023") throw invalid([said.message, said.hint].filter(Boolean).join(" ").slice(0, 500));
  if (response.status === 401 || response.status === 403) {
    throw new Refusal(401, "unauthorized", "The database does not accept this token. Sign in anew.");
  }
  throw new Error(`the search was refused with status ${response.status}`);
}

/** Writes the ledger; the caller has their answer in any case, and the operator a line in the log. */
async function record({ payer, provider, model }: Model & { payer: string }, tokens: number): Promise<void> {
  const row = { request: crypto.randomUUID(), payer, provider, model, tokens };
  for (const last of [false, true]) {
    try {
      await callDatabase("record_search", row);
      return;
    } catch (error) {
      if (last) console.error(`search: not in the ledger: ${error instanceof Error ? error.message : "failed"}`);
    }
  }
}
