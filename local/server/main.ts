// The local Supabase on one loopback port: /auth/v1, /rest/v1, /storage/v1, /realtime/v1 and /functions/v1.
//
// Settings come from the environment that the stack gives it. When it is ready it prints one line of JSON, and
// it ends when its standard input closes, so that it cannot outlive the process that started it.
import { type Api, createApi } from "./api.ts";
import { callFunction, loadFunctions } from "./functions.ts";
import { createRealtime, type Realtime } from "./realtime/mod.ts";
import { createStorage } from "./storage/mod.ts";

const HOST = "127.0.0.1";
// Storage bounds its own uploads; what Auth and REST are sent is held in memory.
const MAX_BODY_BYTES = 16 * 1024 * 1024;

// Standard output carries the ready line only; packages that log there go to the log like the rest.
console.log = console.info = console.debug = console.error;

// When a connection that decodes breaks, postgres.js 3.4.9 rejects a promise that nobody can wait for, and makes a new
// connection. Everything else that nobody waited for ends the process, as it should.
const BROKEN = ["57P01", "57P02", "57P03", "CONNECTION_CLOSED", "CONNECTION_ENDED", "ECONNREFUSED", "ECONNRESET"];
globalThis.addEventListener("unhandledrejection", (event) => {
  if (!BROKEN.includes(event.reason?.code)) return;
  event.preventDefault();
  console.error("realtime: the connection to the database broke:", event.reason.code);
});

type Handle = (request: Request, peerAddress: string) => Promise<Response>;

function setting(name: string): string {
  const value = Deno.env.get(name);
  if (!value) throw new Error(`${name} is not set. Start the server with: python -m local up`);
  return value;
}

function problem(status: number, message: string): Response {
  return Response.json({ statusCode: String(status), error: "local", message }, { status });
}

const CORS = {
  "access-control-allow-origin": "*",
  "access-control-expose-headers": "content-range, content-length, location, etag, x-total-count",
};

function preflight(request: Request): Response {
  const asked = request.headers.get("access-control-request-headers");
  return new Response(null, {
    status: 204,
    headers: {
      ...CORS,
      "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
      "access-control-allow-headers": asked ?? "authorization, apikey, content-type, x-client-info, x-upsert",
      "access-control-max-age": "3600",
    },
  });
}

function withCors(response: Response): Response {
  if (response.headers.has("access-control-allow-origin")) return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(CORS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

async function build(publicUrl: string): Promise<{ handle: Handle; api: Api; realtime: Realtime }> {
  const keys = {
    jwtSecret: setting("SLUICE_JWT_SECRET"),
    publishableKey: setting("SLUICE_PUBLISHABLE_KEY"),
    secretKey: setting("SLUICE_SECRET_KEY"),
  };
  const api = await createApi({ ...keys, databaseUrl: setting("SLUICE_API_DATABASE_URL"), siteUrl: publicUrl });
  const storage = createStorage({
    ...keys,
    databaseUrl: setting("SLUICE_STORAGE_DATABASE_URL"),
    directory: setting("SLUICE_STORAGE_DIRECTORY"),
    fileSizeLimit: Number(Deno.env.get("SLUICE_STORAGE_FILE_SIZE_LIMIT")) || undefined,
  });
  const realtime = createRealtime({ ...keys, databaseUrl: setting("SLUICE_REALTIME_DATABASE_URL") });
  // What the platform tells every function.
  Deno.env.set("SUPABASE_URL", publicUrl);
  Deno.env.set("SUPABASE_PUBLISHABLE_KEYS", JSON.stringify({ default: keys.publishableKey }));
  Deno.env.set("SUPABASE_SECRET_KEYS", JSON.stringify({ default: keys.secretKey }));
  const functions = await loadFunctions(setting("SLUICE_FUNCTIONS_DIRECTORY"));

  const handle: Handle = async (request, peerAddress) => {
    const path = new URL(request.url).pathname;
    // Functions answer a browser's question themselves, as on hosted projects; the rest is answered here, because
    // the Auth server of the package names no headers.
    if (request.headers.has("access-control-request-method") && !path.startsWith("/functions/v1/")) {
      return preflight(request);
    }
    if (path.startsWith("/auth/v1/") || path.startsWith("/rest/v1/") || path === "/rest/v1") {
      if (Number(request.headers.get("content-length") ?? 0) > MAX_BODY_BYTES) {
        return problem(413, `The body is larger than ${MAX_BODY_BYTES} bytes.`);
      }
      return await api.fetch(request, peerAddress);
    }
    if (path.startsWith("/storage/v1/")) return withCors(await storage(request));
    if (path.startsWith("/realtime/v1/")) return await realtime.fetch(request);
    if (path.startsWith("/functions/v1/")) return await callFunction(functions, request);
    if (path === "/health") return Response.json({ status: "ok" });
    return problem(
      404,
      `Nothing is served at ${path}. Try /auth/v1, /rest/v1, /storage/v1, /realtime/v1 or /functions/v1.`,
    );
  };
  return { handle, api, realtime };
}

let handle: Handle = () => Promise.resolve(problem(503, "The server is starting. Try again in a moment."));

const server = Deno.serve(
  { hostname: HOST, port: Number(Deno.env.get("SLUICE_PORT") ?? 0), onListen: () => {} },
  async (
    request,
    info,
  ) => {
    try {
      return await handle(request, (info.remoteAddr as Deno.NetAddr).hostname);
    } catch (error) {
      console.error(error);
      return problem(500, "The local server failed; its log says why.");
    }
  },
);

const port = (server.addr as Deno.NetAddr).port;
const built = await build(`http://${HOST}:${port}`);
handle = built.handle;
await Deno.stdout.write(new TextEncoder().encode(JSON.stringify({ ready: true, port }) + "\n"));

async function stop(): Promise<never> {
  // Requests under way get a moment; a connection that stays open must not keep the process.
  setTimeout(() => Deno.exit(0), 2000);
  await Promise.all([built.realtime.close(), server.shutdown()]);
  await built.api.close();
  Deno.exit(0);
}

Deno.addSignalListener("SIGTERM", stop);
Deno.addSignalListener("SIGINT", stop);
for await (const _ of Deno.stdin.readable) { /* nothing is said on it; only its end matters */ }
await stop();
