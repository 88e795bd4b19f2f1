// Who calls: a signed-in user, by the project's key in `apikey` and the user's JWT in Authorization.
//
// verify_jwt of the platform knows neither the new keys nor signing keys, so it is off, and this is the check. Tokens
// signed with the project's signing keys (ES256, RS256) are verified here against the published ones; those signed
// with the legacy secret (HS256) by Auth, because the secret has no business in a function.
import { Buffer } from "node:buffer";
import { Refusal } from "./answer.ts";
import { equalBytes } from "./compare.ts";
import { knownKeys, projectUrl } from "./project.ts";

const SECONDS = 5;
const LEEWAY_SECONDS = 5;
const KEEP_MS = 600_000;
// A token that names a key we do not have makes us ask again, but no oftener than this.
const AGAIN_MS = 30_000;
const MAX_TOKEN = 8192;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

const ALGORITHMS = {
  ES256: {
    type: "EC",
    import: { name: "ECDSA", namedCurve: "P-256" },
    verify: { name: "ECDSA", hash: "SHA-256" },
  },
  RS256: {
    type: "RSA",
    import: { name: "RSASSA-PKCS1-v1_5", hash: "SHA-256" },
    verify: { name: "RSASSA-PKCS1-v1_5" },
  },
} as const;

interface Jwk extends JsonWebKey {
  kid?: string;
}

export interface Caller {
  userId: string;
  /** What this caller sends to the project's API: their own key and token, as they came. */
  headers: Record<string, string>;
}

const unauthorized = () =>
  new Refusal(401, "unauthorized", "Sign in: send the project's key as apikey and the user's token as Authorization.");

/** The signed-in user who sent this; refuses everybody else with 401, always in the same words. */
export async function callerOf(request: Request): Promise<Caller> {
  const apikey = request.headers.get("apikey") ?? "";
  const token = /^Bearer ([\w-]+\.[\w-]+\.[\w-]+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? "";
  const given = Buffer.from(apikey);
  const known = knownKeys().map((key) => equalBytes(Buffer.from(key), given)).includes(true);
  if (!known || token === "" || token.length > MAX_TOKEN) throw unauthorized();

  const [head, claims] = token.split(".", 2).map(decoded);
  const now = Date.now() / 1000;
  const fits = typeof claims?.exp === "number" && claims.exp > now - LEEWAY_SECONDS &&
    (claims.nbf === undefined || typeof claims.nbf === "number" && claims.nbf <= now + LEEWAY_SECONDS) &&
    claims.role === "authenticated" && typeof claims.sub === "string" && UUID.test(claims.sub);
  if (!fits) throw unauthorized();
  const good = head?.alg === "HS256" ? await authKnows(apikey, token, claims.sub as string) : await signed(head, token);
  if (!good) throw unauthorized();
  return { userId: claims.sub as string, headers: { apikey, authorization: `Bearer ${token}` } };
}

async function authKnows(apikey: string, token: string, userId: string): Promise<boolean> {
  const response = await fetch(`${projectUrl()}/auth/v1/user`, {
    headers: { apikey, authorization: `Bearer ${token}` },
    signal: AbortSignal.timeout(SECONDS * 1000),
    redirect: "error",
  });
  if (!response.ok) {
    await response.body?.cancel();
    if (response.status >= 500) throw new Error(`Auth answered with status ${response.status}`);
    return false;
  }
  return (await response.json()).id === userId;
}

async function signed(head: Record<string, unknown> | null, token: string): Promise<boolean> {
  // The algorithm is the key's, never the token's alone; `none` and whatever else has no entry.
  const algorithm = Object.hasOwn(ALGORITHMS, String(head?.alg)) ? head?.alg as keyof typeof ALGORITHMS : null;
  if (algorithm === null || typeof head?.kid !== "string" || head.crit !== undefined) return false;
  const jwk = await publicKey(head.kid);
  const wanted = ALGORITHMS[algorithm];
  if (jwk === null || jwk.kty !== wanted.type || jwk.alg !== undefined && jwk.alg !== algorithm) return false;
  const { kty, crv, x, y, n, e } = jwk;
  const key = await crypto.subtle.importKey("jwk", { kty, crv, x, y, n, e }, wanted.import, false, ["verify"]);
  const end = token.lastIndexOf(".");
  const signature = Buffer.from(token.slice(end + 1), "base64url");
  return await crypto.subtle.verify(wanted.verify, key, signature, Buffer.from(token.slice(0, end)));
}

let fetched: { keys: Jwk[]; at: number } | null = null;

/** The project's public key of this name: from SUPABASE_JWKS, else as Auth publishes them; null where there is none. */
async function publicKey(kid: string): Promise<Jwk | null> {
  const given = Deno.env.get("SUPABASE_JWKS");
  const ours = given ? keysIn(JSON.parse(given)).find((key) => key.kid === kid) : undefined;
  if (ours) return ours;
  const age = fetched === null ? Infinity : Date.now() - fetched.at;
  const kept = fetched?.keys.find((key) => key.kid === kid);
  if (kept && age < KEEP_MS) return kept;
  if (age < AGAIN_MS) return null;
  const response = await fetch(`${projectUrl()}/auth/v1/.well-known/jwks.json`, {
    signal: AbortSignal.timeout(SECONDS * 1000),
    redirect: "error",
  });
  if (!response.ok) {
    await response.body?.cancel();
    throw new Error(`Auth's public keys: status ${response.status}`);
  }
  fetched = { keys: keysIn(await response.json()), at: Date.now() };
  return fetched.keys.find((key) => key.kid === kid) ?? null;
}

function keysIn(set: unknown): Jwk[] {
  // The platform gives the variable as a set, or as the array in it.
  const keys = Array.isArray(set) ? set : (set as { keys?: unknown })?.keys;
  return Array.isArray(keys) ? keys : [];
}

function decoded(part: string): Record<string, unknown> | null {
  try {
    const value = JSON.parse(Buffer.from(part, "base64url").toString());
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}
