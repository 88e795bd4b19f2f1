// A remote parser says that it has finished: POST …/parse-webhook?parse=<id>&token=<the parse's secret>
//
// A hint and nothing more. What the body says is not read: the parse is made due, the workers are told, and they ask
// the provider with their own key. Where this fails the timer asks a little later.
//
// The token is in every URL. Where SLUICE_WEBHOOK_SECRET is set (several with blanks between them, to rotate), every
// message must be signed besides; without it the URL's token is all there is, and serves once.
//
//   405 not a POST      408 too slow     413 over 8 MiB       401 not signed, wrongly signed, or too old
//   404 no such parse, not its token, or it has ended: all the same      409 received before
import { createHash } from "node:crypto";
import { answer, refuse } from "../_shared/answer.ts";
import { readBody } from "../_shared/body.ts";
import { callDatabase } from "../_shared/project.ts";
import { isSigned, secretsOf, Signature } from "./signature.ts";

// LlamaParse v1 sends the whole result.
const MAX_BODY_BYTES = 8 * 1024 * 1024;
const PARSE = /^[1-9]\d{0,17}$/;
const TOKEN = /^[\w-]{43}$/;

Deno.serve(async (request) => {
  if (request.method !== "POST") return refuse(405, { allow: "POST" });
  const secrets = secretsOf(Deno.env.get("SLUICE_WEBHOOK_SECRET"));
  // One that says it is signed is never taken as unsigned.
  const signature = secrets.length > 0 || isSigned(request.headers) ? new Signature(request.headers, secrets) : null;
  const read = await readBody(request, MAX_BODY_BYTES, (piece) => signature?.update(piece));
  if (read !== "whole") return refuse(read === "too slow" ? 408 : 413);
  const signed = signature?.verify();
  if (signed === null) return refuse(401);

  const query = new URL(request.url).searchParams;
  const parse = query.get("parse") ?? "";
  const token = query.get("token") ?? "";
  if (!PARSE.test(parse) || !TOKEN.test(token)) return refuse(404);
  const secret = createHash("sha256").update(token).digest("hex");
  try {
    // Only digests go to the database, where a log may quote them.
    const said = await callDatabase("parse_hint", {
      parse_id: parse,
      secret_sha256: secret,
      digest: signed ?? createHash("sha256").update(`token:${token}`).digest("hex"),
    });
    if (said === "accepted") return answer(202, { status: "accepted" });
    return refuse(said === "replayed" ? 409 : 404);
  } catch (error) {
    console.error(`parse-webhook: ${error instanceof Error ? error.message : "failed"}`);
    return refuse(503, { "retry-after": "30" });
  }
});
