// The project around a function, as the platform describes it in the environment, and calls to its database.

const SECONDS = 5;

/** The URL of the project; throws where the platform did not set it. */
export function projectUrl(): string {
  return required("SUPABASE_URL");
}

/**
 * The key that acts as service_role: of the project's several keys (SUPABASE_SECRET_KEYS, a JSON object by name)
 * `default` or else the first, and where there is none of the new kind, the legacy one.
 */
export function secretKey(): string {
  const several = Deno.env.get("SUPABASE_SECRET_KEYS");
  if (several) {
    const keys = JSON.parse(several) as Record<string, string>;
    const key = keys.default ?? Object.values(keys)[0];
    if (key) return key;
  }
  const single = Deno.env.get("SUPABASE_SECRET_KEY") || Deno.env.get("SUPABASE_SERVICE_ROLE_KEY");
  if (single) return single;
  throw new Error("Neither SUPABASE_SECRET_KEYS, SUPABASE_SECRET_KEY nor SUPABASE_SERVICE_ROLE_KEY is set.");
}

/** Every key that acts as service_role, the new kind and the legacy one. */
export function secretKeys(): string[] {
  const several = Deno.env.get("SUPABASE_SECRET_KEYS");
  const single = ["SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY"].map((name) => Deno.env.get(name));
  return [...(several ? Object.values(JSON.parse(several) as Record<string, string>) : []), ...single]
    .filter((key): key is string => Boolean(key));
}

/** Every key of this project that a caller may send, the new kind and the legacy one. */
export function knownKeys(): string[] {
  const several = ["SUPABASE_PUBLISHABLE_KEYS", "SUPABASE_SECRET_KEYS"].flatMap((name) => {
    const keys = Deno.env.get(name);
    return keys ? Object.values(JSON.parse(keys) as Record<string, string>) : [];
  });
  const single = [
    "SUPABASE_PUBLISHABLE_KEY",
    "SUPABASE_ANON_KEY",
    "SUPABASE_SECRET_KEY",
    "SUPABASE_SERVICE_ROLE_KEY",
  ].map((name) => Deno.env.get(name));
  return [...several, ...single].filter((key): key is string => Boolean(key));
}

/**
 * Calls a function of schema public as service_role and returns what it returned. Throws with the status alone when
 * it is refused: what the database says may quote the arguments.
 */
export async function callDatabase(name: string, parameters: Record<string, unknown>): Promise<unknown> {
  const key = secretKey();
  const response = await fetch(`${projectUrl()}/rest/v1/rpc/${name}`, {
    method: "POST",
    // Legacy keys are JWTs and decide the role from Authorization; the new ones are accepted there where both agree.
    headers: { apikey: key, authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify(parameters),
    signal: AbortSignal.timeout(SECONDS * 1000),
    redirect: "error",
  });
  if (!response.ok) {
    await response.body?.cancel();
    throw new Error(`${name} was refused with status ${response.status}`);
  }
  return await response.json();
}

function required(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new Error(`${name} is not set.`);
  return value;
}
