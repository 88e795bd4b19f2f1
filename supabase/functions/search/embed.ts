// One query's vector, from a server that speaks OpenAI's protocol: SLUICE_EMBEDDINGS_URL (with its /v1), with the key
// SLUICE_EMBEDDINGS_KEY where it wants one. Both come from the function's environment and never from a request.
import { Refusal } from "../_shared/answer.ts";

const SECONDS = 10;

export interface Model {
  provider: string;
  model: string;
  dimensions: number;
}

export interface Embedded {
  vector: number[];
  tokens: number;
}

/**
 * Embeds `query`. Throws a Refusal where the server says that the text cannot be embedded, and an Error with nothing
 * of the server's words for the rest.
 */
export async function embed(query: string, { model, dimensions }: Model): Promise<Embedded> {
  const base = Deno.env.get("SLUICE_EMBEDDINGS_URL");
  if (!base) throw new Error("SLUICE_EMBEDDINGS_URL is not set.");
  const key = Deno.env.get("SLUICE_EMBEDDINGS_KEY");
  const response = await fetch(`${base.replace(/\/+$/, "")}/embeddings`, {
    method: "POST",
    headers: { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) },
    body: JSON.stringify({
      model,
      input: query,
      encoding_format: "float",
      // Only these can shorten their vectors; others refuse the parameter.
      ...(model.startsWith("text-embedding-3") ? { dimensions } : {}),
    }),
    signal: AbortSignal.timeout(SECONDS * 1000),
    redirect: "error",
  });
  if (!response.ok) {
    await response.body?.cancel();
    if (response.status === 400 || response.status === 413 || response.status === 422) {
      throw new Refusal(422, "query_refused", "The embedding model does not take this query. Shorten it.");
    }
    throw new Error(`the embedding server answered with status ${response.status}`);
  }
  const answer = await response.json();
  const vector: unknown = answer?.data?.[0]?.embedding;
  if (!isVector(vector, dimensions)) throw new Error("the embedding server gave an unusable vector");
  const counted: unknown = answer?.usage?.prompt_tokens;
  // Without a bill, what such a text has in most languages.
  const tokens = Number.isSafeInteger(counted) && counted as number >= 0
    ? counted as number
    : Math.ceil(query.length / 4);
  return { vector, tokens };
}

function isVector(value: unknown, dimensions: number): value is number[] {
  return Array.isArray(value) && value.length === dimensions && value.every(Number.isFinite) &&
    value.some((number) => number !== 0);
}
