// Bodies with a bound, in bytes and in time: what is larger or slower is not read to its end.

const SECONDS = 15;

/** How reading ended; only after "whole" was all of it handed on. */
export type Ending = "whole" | "too large" | "too slow";

/** Hands each piece of the body to `take`. Where it does not end within `limit` bytes the rest is left unread. */
export async function readBody(
  request: Request,
  limit: number,
  take: (piece: Uint8Array) => void,
  seconds: number = SECONDS,
): Promise<Ending> {
  if (Number(request.headers.get("content-length") ?? 0) > limit) {
    await request.body?.cancel();
    return "too large";
  }
  if (request.body === null) return "whole";
  let size = 0;
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<"late">((resolve) => timer = setTimeout(() => resolve("late"), seconds * 1000));
  const reader = request.body.getReader();
  try {
    while (true) {
      const piece = await Promise.race([reader.read(), late]);
      if (piece === "late") {
        await reader.cancel();
        return "too slow";
      }
      if (piece.done) return "whole";
      size += piece.value.byteLength;
      if (size > limit) {
        await reader.cancel();
        return "too large";
      }
      take(piece.value);
    }
  } finally {
    clearTimeout(timer);
  }
}
