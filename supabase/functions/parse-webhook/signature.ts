// Signatures of incoming messages, computed while the body passes by: nothing of it is kept.
//
//   LC-Signature: sha256=<hex>                        HMAC-SHA256 of the body (LlamaParse v2)
//   webhook-id, -timestamp, -signature: v1,<base64>   HMAC-SHA256 of "id.timestamp.body" (Standard Webhooks)
//
// During a rotation several secrets are valid.
import { Buffer } from "node:buffer";
import { createHash, createHmac, type Hmac } from "node:crypto";
import { equalBytes } from "../_shared/compare.ts";

const TOLERANCE_SECONDS = 300;
const HEX = /^sha256=([0-9a-f]{64})$/;

/** The secrets in a setting: one, or several with blanks between them. */
export function secretsOf(setting: string | undefined): string[] {
  return (setting ?? "").split(/\s+/).filter((secret) => secret !== "");
}

/** Whether the request says that it is signed, in either way. */
export function isSigned(headers: Headers): boolean {
  return headers.has("lc-signature") || headers.has("webhook-signature");
}

/** Checks one request: `update` gets the body piece by piece, then `verify` is asked once. */
export class Signature {
  readonly #given: Uint8Array[];
  readonly #hmacs: Hmac[];
  readonly #digest = createHash("sha256");
  readonly #fresh: boolean;

  constructor(headers: Headers, secrets: string[], now: number = Date.now()) {
    const plain = headers.get("lc-signature");
    const id = headers.get("webhook-id") ?? "";
    const stamp = headers.get("webhook-timestamp") ?? "";
    this.#fresh = stamp === "" ? plain !== null : isFresh(stamp, now);
    if (plain !== null) {
      const hex = HEX.exec(plain.trim())?.[1];
      this.#given = hex ? [Buffer.from(hex, "hex")] : [];
      this.#hmacs = secrets.map((secret) => createHmac("sha256", secret));
    } else {
      const said = (headers.get("webhook-signature") ?? "").split(" ", 8);
      this.#given = said.filter((one) => one.startsWith("v1,")).map((one) => Buffer.from(one.slice(3), "base64"));
      this.#hmacs = secrets.map((secret) => createHmac("sha256", standardKey(secret)).update(`${id}.${stamp}.`));
      this.#digest.update(`${id}.${stamp}.`);
    }
  }

  update(piece: Uint8Array): void {
    for (const hmac of this.#hmacs) hmac.update(piece);
    this.#digest.update(piece);
  }

  /** The digest, in hex, of what was signed, or null where no signature holds or the time stamp is over 5 minutes off. */
  verify(): string | null {
    const made = this.#hmacs.map((hmac) => hmac.digest());
    // Every pair is compared: how long it takes says nothing of which one held.
    const holds = made.flatMap((own) => this.#given.map((given) => equalBytes(own, given))).includes(true);
    return holds && this.#fresh ? this.#digest.digest("hex") : null;
  }
}

function isFresh(stamp: string, now: number): boolean {
  return /^\d{1,12}$/.test(stamp) && Math.abs(now / 1000 - Number(stamp)) <= TOLERANCE_SECONDS;
}

function standardKey(secret: string): Uint8Array {
  return secret.startsWith("whsec_") ? Buffer.from(secret.slice(6), "base64") : Buffer.from(secret);
}
