// Tokens: the JWTs of users, and those in signed URLs.
//
// All are HS256. Each purpose has a key of its own, derived from the project's secret: a signed URL's token cannot
// be used as a user's, nor one for downloading to upload.

import { refusals } from "./errors.ts";

export type Claims = Record<string, unknown>;

const encoder = new TextEncoder();
const HEADER = encode(encoder.encode(JSON.stringify({ alg: "HS256", typ: "JWT" })));

export class Signer {
  #key: Promise<CryptoKey>;

  /** `purpose` names the derived key; without it the secret itself is the key, as in the Auth server's tokens. */
  constructor(secret: string, purpose?: string) {
    this.#key = importKey(encoder.encode(secret)).then(async (root) =>
      purpose ? await importKey(await crypto.subtle.sign("HMAC", root, encoder.encode(purpose))) : root
    );
  }

  /** Returns a token that holds `claims` for `seconds`. */
  async sign(claims: Claims, seconds: number): Promise<string> {
    const now = Math.floor(Date.now() / 1000);
    const payload = encode(encoder.encode(JSON.stringify({ ...claims, iat: now, exp: now + seconds })));
    const signature = await crypto.subtle.sign("HMAC", await this.#key, encoder.encode(`${HEADER}.${payload}`));
    return `${HEADER}.${payload}.${encode(new Uint8Array(signature))}`;
  }

  /** Returns the claims of a token that is ours and in its time; refuses every other, `alg: none` included. */
  async verify(token: string): Promise<Claims> {
    const parts = token.split(".");
    if (parts.length !== 3) throw refusals.invalidToken("Invalid Compact JWS");
    const [header, payload, signature] = parts;
    if (object(header)?.alg !== "HS256") throw refusals.invalidToken("The token's algorithm is not allowed");
    const given = decode(signature);
    const signed = encoder.encode(`${header}.${payload}`);
    if (!given || !await crypto.subtle.verify("HMAC", await this.#key, given, signed)) {
      throw refusals.invalidToken("signature verification failed");
    }
    const claims = object(payload);
    if (!claims) throw refusals.invalidToken("Invalid Compact JWS");
    const now = Math.floor(Date.now() / 1000);
    if (claims.exp !== undefined && !(typeof claims.exp === "number" && claims.exp > now)) {
      throw refusals.invalidToken('"exp" claim timestamp check failed');
    }
    if (claims.nbf !== undefined && !(typeof claims.nbf === "number" && claims.nbf <= now)) {
      throw refusals.invalidToken('"nbf" claim timestamp check failed');
    }
    return claims;
  }
}

function importKey(bytes: BufferSource): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", bytes, { name: "HMAC", hash: "SHA-256" }, false, ["sign", "verify"]);
}

function encode(bytes: Uint8Array<ArrayBuffer>): string {
  return bytes.toBase64({ alphabet: "base64url", omitPadding: true });
}

function decode(text: string): Uint8Array<ArrayBuffer> | null {
  try {
    return Uint8Array.fromBase64(text, { alphabet: "base64url" });
  } catch {
    return null;
  }
}

function object(part: string): Claims | null {
  try {
    const value = JSON.parse(new TextDecoder().decode(decode(part) ?? undefined));
    return typeof value === "object" && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}
