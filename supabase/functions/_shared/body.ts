// Bodies with a bound: what is declared or turns out to be larger is not read to its end.

/**
 * Hands each piece of the body to `take`, and says whether it ended within `limit` bytes. Where it did not, the rest
 * is left unread.
 */
export async function readBody(request: Request, limit: number, take: (piece: Uint8Array) => void): Promise<boolean> {
  if (Number(request.headers.get("content-length") ?? 0) > limit) {
    await request.body?.cancel();
    return false;
  }
  if (request.body === null) return true;
  let size = 0;
  const reader = request.body.getReader();
  while (true) {
    const { done, value } = await reader.read();
    if (done) return true;
    size += value.byteLength;
    if (size > limit) {
      await reader.cancel();
      return false;
    }
    take(value);
  }
}
