// Auth and REST: `@supabase/lite` on our Postgres, as the login role lite_api, which owns nothing.
import { App } from "@supabase/lite";
import { createPostgresConnection } from "@supabase/lite/postgres";

/** The package writes JSON values as text before the driver does it again; both together store a string. */
const jsonOnce = (oid: number) => ({
  to: oid,
  from: [oid],
  serialize: (value: unknown) => typeof value === "string" && isJson(value) ? value : JSON.stringify(value),
  parse: (text: string) => JSON.parse(text),
});

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

export interface ApiOptions {
  databaseUrl: string;
  jwtSecret: string;
  publishableKey: string;
  secretKey: string;
  siteUrl: string;
}

export interface Api {
  fetch(request: Request, peerAddress: string): Promise<Response>;
  close(): Promise<void>;
}

/** Starts Auth and REST. Tables made later are not seen: call it after the migrations. */
export async function createApi(options: ApiOptions): Promise<Api> {
  const connection = createPostgresConnection({
    url: options.databaseUrl,
    postgresOptions: { max: 10, types: { json: jsonOnce(114), jsonb: jsonOnce(3802) } },
  });
  // At its first request under row-level security the package grants everything on every schema that has such a
  // table to anon and authenticated. As lite_api it may not, and answers that request with 403; "active" says
  // that this is done already. The field is private, hence the exact version and this check.
  const internals = connection as unknown as { rlsState: unknown };
  if (internals.rlsState !== "unknown") {
    throw new Error(
      "@supabase/lite has changed: its connection has no rlsState. Look at how it grants before going on.",
    );
  }
  internals.rlsState = "active";

  const app = new App({
    connection,
    api: { schemas: ["public"] },
    auth: {
      enabled: true,
      jwt_secret: options.jwtSecret,
      publishable_key: options.publishableKey,
      secret_key: options.secretKey,
      site_url: options.siteUrl,
      enable_signup: true,
      email: { enable_signup: true, enable_confirmations: false },
    },
    options: { server: { admin: false } },
  });
  await app.init();
  return {
    fetch: async (request, peerAddress) => {
      const response = await app.fetch(request, { peerAddress });
      return new URL(request.url).pathname.startsWith("/auth/") ? await withIsoTimes(response) : response;
    },
    close: () => connection.close(),
  };
}

/**
 * Rewrites Postgres's way of writing times to the Auth server's: typed clients, the Python one among them, refuse
 * "2026-01-31 12:00:00+00" and so the whole session.
 */
async function withIsoTimes(response: Response): Promise<Response> {
  if (!response.headers.get("content-type")?.includes("application/json")) return response;
  const body = (await response.text()).replace(/"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d(?:\.\d+)?)\+00"/g, '"$1T$2Z"');
  const headers = new Headers(response.headers);
  headers.delete("content-length");
  return new Response(body, { status: response.status, statusText: response.statusText, headers });
}
