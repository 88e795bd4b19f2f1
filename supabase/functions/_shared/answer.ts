// Answers: small JSON, never cached. A refusal's body depends on its status alone, so that it tells nothing more.

const CODES: Record<number, [code: string, message: string]> = {
  401: ["unauthorized", "The request is not signed as it must be."],
  404: ["not_found", "There is nothing here."],
  405: ["method_not_allowed", "This method is not supported here."],
  408: ["too_slow", "The request did not come in time."],
  409: ["already_received", "This message was received before."],
  413: ["too_large", "The request is too large."],
  503: ["unavailable", "The service does not answer at the moment. Try again later."],
};

/** A JSON answer. */
export function answer(status: number, body: unknown, headers: Record<string, string> = {}): Response {
  return Response.json(body, { status, headers: { "cache-control": "no-store", ...headers } });
}

/** The refusal of this status, always the same. */
export function refuse(status: keyof typeof CODES, headers: Record<string, string> = {}): Response {
  const [code, message] = CODES[status];
  return answer(status, { code, message }, headers);
}

/** A refusal that tells its caller what to do; `message` holds nothing but what a caller may know. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly headers: Record<string, string> = {},
  ) {
    super(message);
  }

  response(): Response {
    return answer(this.status, { code: this.code, message: this.message }, this.headers);
  }
}
