// Comparisons that take as long for a near miss as for a far one.
import { timingSafeEqual } from "node:crypto";

/** Whether both hold the same bytes; their length is no secret. */
export function equalBytes(one: Uint8Array, other: Uint8Array): boolean {
  return one.byteLength === other.byteLength && timingSafeEqual(one, other);
}
