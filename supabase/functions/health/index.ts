// How the whole thing does: GET …/health → {status, timestamp}, and with the project's secret key in `apikey` (or as
// a bearer) all of {version, git_sha, migration, services, queue, workers}.
//
// One call to the database and no other: workers write what they saw of each service every 10 s, and what is older
// than 25 s is unknown. So this says within 30 s that something is gone, and answers in milliseconds.
//
//   200 status ok or degraded: files are worked on      405 neither GET nor HEAD
//   503 status unhealthy: no fresh worker; the database, Auth or Storage not known to answer; a provider's key refused
import { Buffer } from "node:buffer";
import { answer, refuse } from "../_shared/answer.ts";
import { equalBytes } from "../_shared/compare.ts";
import { preflight, withCors } from "../_shared/cors.ts";
import { callDatabase, secretKeys } from "../_shared/project.ts";

type Service = { status: string; latency_ms: number | null; code: string | null; message: string | null };
type Health = {
  status: "ok" | "degraded" | "unhealthy";
  timestamp: string;
  services: Record<string, Service>;
  git_sha: string | null;
};

Deno.serve(async (request) => {
  const early = preflight(request, "GET, HEAD");
  if (early) return early;
  return withCors(request, await respond(request));
});

async function respond(request: Request): Promise<Response> {
  if (request.method !== "GET" && request.method !== "HEAD") return refuse(405, { allow: "GET, HEAD, OPTIONS" });
  let health: Health;
  try {
    health = await read();
  } catch (error) {
    console.error(`health: ${error instanceof Error ? error.message : "failed"}`);
    health = unreachable();
  }
  const told = operates(request) ? health : { status: health.status, timestamp: health.timestamp };
  const response = answer(health.status === "unhealthy" ? 503 : 200, told);
  // A monitor that asks with HEAD wants the status alone.
  return request.method === "HEAD" ? new Response(null, response) : response;
}

async function read(): Promise<Health> {
  const began = performance.now();
  const health = await callDatabase("health", {}) as Health;
  // What it took from here, the API included, is better news than any row.
  health.services.database.latency_ms = Math.round((performance.now() - began) * 10) / 10;
  health.git_sha ??= Deno.env.get("SLUICE_GIT_SHA") ?? null;
  return health;
}

function unreachable(): Health {
  const message = "The database, or the API before it, does not answer.";
  const database = { status: "failed", latency_ms: null, code: "unreachable", message };
  return { status: "unhealthy", timestamp: new Date().toISOString(), services: { database }, git_sha: null };
}

/** Whether the caller sent one of the project's secret keys. */
function operates(request: Request): boolean {
  const bearer = /^Bearer (\S+)$/i.exec(request.headers.get("authorization") ?? "")?.[1];
  const given = [request.headers.get("apikey"), bearer].filter((key) => key).map((key) => Buffer.from(key as string));
  // All are compared, so that the time does not tell which one is near.
  return secretKeys().flatMap((key) => given.map((one) => equalBytes(Buffer.from(key), one))).includes(true);
}
