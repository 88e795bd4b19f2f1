// Who asks.
//
// The Authorization header decides: a user's JWT, or one of the project's two keys. Without it the `apikey` header
// does. supabase-js sends both, the key twice where nobody is signed in.

import { createHash, timingSafeEqual } from "node:crypto";
import { ANONYMOUS, type Caller, type Role, SERVICE } from "./database.ts";
import { refusals, StorageError } from "./errors.ts";
import { Signer } from "./signing.ts";

const ROLES: readonly string[] = ["anon", "authenticated", "service_role"] satisfies Role[];

export interface Keys {
  jwtSecret: string;
  publishableKey: string;
  secretKey: string;
}

export class Callers {
  #users: Signer;

  constructor(private readonly keys: Keys) {
    this.#users = new Signer(keys.jwtSecret);
  }

  /** Returns who sent the request; refuses one without credentials or with wrong ones. */
  async identify(request: Request): Promise<Caller> {
    const apikey = request.headers.get("apikey");
    const fromKey = apikey === null ? null : this.#fromKey(apikey);
    if (apikey !== null && fromKey === null && !looksLikeToken(apikey)) throw refusals.invalidApiKey();

    const bearer = /^Bearer\s+(\S+)$/i.exec(request.headers.get("authorization") ?? "")?.[1] ?? null;
    if (bearer !== null) return this.#fromKey(bearer) ?? await this.#fromToken(bearer);
    if (fromKey) return fromKey;
    if (apikey !== null) return await this.#fromToken(apikey);
    throw refusals.accessDenied("Send the project's key in the apikey header, or a user's token as Authorization.");
  }

  /** Like identify, for routes that also serve public buckets: null where the credentials are missing or wrong. */
  async identifyOrNull(request: Request): Promise<Caller | null> {
    try {
      return await this.identify(request);
    } catch (thrown) {
      if (thrown instanceof StorageError) return null;
      throw thrown;
    }
  }

  #fromKey(value: string): Caller | null {
    if (same(value, this.keys.secretKey)) return SERVICE;
    return same(value, this.keys.publishableKey) ? ANONYMOUS : null;
  }

  async #fromToken(token: string): Promise<Caller> {
    let claims;
    try {
      claims = await this.#users.verify(token);
    } catch (thrown) {
      throw thrown instanceof StorageError ? refusals.accessDenied(thrown.message) : thrown;
    }
    const role = claims.role;
    if (typeof role !== "string" || !ROLES.includes(role)) throw refusals.accessDenied("The token names no known role");
    const sub = typeof claims.sub === "string" && claims.sub ? claims.sub : undefined;
    return { role: role as Role, sub, claims };
  }
}

function looksLikeToken(value: string): boolean {
  return value.split(".").length === 3;
}

// Digests of equal length, so that neither content nor length shows in the time it takes.
function same(left: string, right: string): boolean {
  const digest = (text: string) => createHash("sha256").update(text).digest();
  return timingSafeEqual(digest(left), digest(right));
}
