// Who follows: the key of the connection, or the user's token with which a channel is joined.

import { ANONYMOUS, type Caller, type Role, SERVICE } from "../storage/database.ts";
import { StorageError } from "../storage/errors.ts";
import { Signer } from "../storage/signing.ts";

/** Why a join is refused; the text begins with a code that clients look for. */
export class Refused extends Error {}

export interface Follower {
  caller: Caller;
  /** When the token ends, in seconds since 1970; keys do not end. */
  expires?: number;
}

export interface Keys {
  jwtSecret: string;
  publishableKey: string;
  secretKey: string;
}

export class Followers {
  #users: Signer;

  constructor(private readonly keys: Keys) {
    this.#users = new Signer(keys.jwtSecret);
  }

  /** Returns who the apikey of the address is; null where it is neither a key nor a token of ours. */
  async ofKey(key: string | null): Promise<Follower | null> {
    if (key === this.keys.secretKey) return { caller: SERVICE };
    if (key === this.keys.publishableKey) return { caller: ANONYMOUS };
    return key === null ? null : await this.ofToken(key).catch(() => null);
  }

  /** Returns who a token is; throws Refused with the real server's words. */
  async ofToken(token: string): Promise<Follower> {
    let claims;
    try {
      claims = await this.#users.verify(token);
    } catch (thrown) {
      if (!(thrown instanceof StorageError)) throw thrown;
      if (thrown.message.startsWith('"exp"')) throw new Refused(expired(expiry(token)));
      if (thrown.message.startsWith("signature")) {
        throw new Refused("JwtSignatureError: Failed to validate JWT signature");
      }
      throw new Refused("MalformedJWT: The token provided is not a valid JWT");
    }
    const { role, exp, sub } = claims;
    if (role !== "anon" && role !== "authenticated" && role !== "service_role") {
      throw new Refused("InvalidJWTToken: Fields `role` and `exp` are required in JWT");
    }
    if (typeof exp !== "number") throw new Refused("InvalidJWTToken: Fields `role` and `exp` are required in JWT");
    const caller = { role: role as Role, sub: typeof sub === "string" && sub ? sub : undefined, claims };
    return { caller, expires: exp };
  }
}

export function expired(expires: number): string {
  return `InvalidJWTToken: Token has expired ${Math.max(0, Math.floor(Date.now() / 1000 - expires))} seconds ago`;
}

// Of a token whose signature was found right; one whose `exp` is no number never was in its time.
function expiry(token: string): number {
  const payload = Uint8Array.fromBase64(token.split(".")[1], { alphabet: "base64url" });
  const { exp } = JSON.parse(new TextDecoder().decode(payload));
  return typeof exp === "number" ? exp : 0;
}
