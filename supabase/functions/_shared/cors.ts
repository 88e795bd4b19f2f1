// Browsers of other origins: those in SLUICE_CORS_ORIGINS (with blanks or commas between them), or any with "*".
//
// No answer ever allows credentials: tokens travel in a header that pages set themselves, cookies mean nothing here.

const HEADERS = "authorization, apikey, content-type, x-client-info";

function allowed(origin: string): string | null {
  const listed = (Deno.env.get("SLUICE_CORS_ORIGINS") ?? "").split(/[\s,]+/).filter((one) => one !== "");
  if (listed.includes("*")) return "*";
  return listed.includes(origin) ? origin : null;
}

/** The answer to a browser's question before the request, or null where this is none. */
export function preflight(request: Request, methods: string): Response | null {
  if (request.method !== "OPTIONS" || !request.headers.has("access-control-request-method")) return null;
  return withCors(
    request,
    new Response(null, {
      status: 204,
      headers: {
        "access-control-allow-methods": methods,
        "access-control-allow-headers": HEADERS,
        "access-control-max-age": "600",
      },
    }),
  );
}

/** Says that the request's origin may read the answer, where it may. */
export function withCors(request: Request, response: Response): Response {
  const origin = request.headers.get("origin");
  const may = origin === null ? null : allowed(origin);
  response.headers.append("vary", "origin");
  if (may === null) {
    response.headers.delete("access-control-allow-methods");
    response.headers.delete("access-control-allow-headers");
    return response;
  }
  response.headers.set("access-control-allow-origin", may);
  response.headers.set("access-control-expose-headers", "retry-after");
  return response;
}
