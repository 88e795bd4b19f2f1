// What the Storage API answers when it refuses.
//
// Clients read `statusCode` and `code` in the body. The HTTP status is 400 for nearly everything, also where the
// body says 403, 404 or 409: the real server does so, and clients have learned to look into the body.

import { PostgresError } from "./database.ts";

export class StorageError extends Error {
  constructor(
    readonly statusCode: number,
    readonly code: string,
    message: string,
    readonly error: string = code,
    readonly httpStatus: number = statusCode >= 500 ? statusCode : 400,
  ) {
    super(message);
    this.name = "StorageError";
  }

  /** Renders the refusal; `HEAD` answers must not carry a body, which the server drops by itself. */
  response(): Response {
    const body = { statusCode: String(this.statusCode), error: this.error, message: this.message, code: this.code };
    return Response.json(body, { status: this.httpStatus, headers: { "cache-control": "no-store" } });
  }
}

export const refusals = {
  noSuchBucket: () => new StorageError(404, "NoSuchBucket", "Bucket not found", "Bucket not found"),
  noSuchKey: () => new StorageError(404, "NoSuchKey", "Object not found", "not_found"),
  noSuchRoute: (method: string, path: string) =>
    new StorageError(404, "NotFound", `Route ${method}:${path} not found`, "Not Found", 404),
  invalidKey: (name: string) => new StorageError(400, "InvalidKey", `Invalid key: ${name}`),
  invalidBucketName: () => new StorageError(400, "InvalidBucketName", "Bucket name invalid", "Invalid Input"),
  invalidParameter: (message: string) => new StorageError(400, "InvalidParameter", message),
  invalidRequest: (message: string) => new StorageError(400, "InvalidRequest", message),
  invalidToken: (message: string) => new StorageError(400, "InvalidJWT", message),
  invalidSignature: () => new StorageError(400, "InvalidSignature", "Invalid signature"),
  invalidMimeType: (type: string) =>
    new StorageError(415, "InvalidMimeType", `mime type ${type} is not supported`, "invalid_mime_type"),
  invalidApiKey: () => new StorageError(401, "AccessDenied", "Invalid API key", "Unauthorized", 401),
  accessDenied: (message: string) => new StorageError(403, "AccessDenied", message, "Unauthorized"),
  alreadyExists: () => new StorageError(409, "KeyAlreadyExists", "The resource already exists", "Duplicate"),
  bucketAlreadyExists: () => new StorageError(409, "BucketAlreadyExists", "The resource already exists", "Duplicate"),
  bucketNotEmpty: () => new StorageError(409, "ResourceNotEmpty", "The bucket you tried to delete is not empty"),
  tooLarge: (what = "object") =>
    new StorageError(413, "EntityTooLarge", `The ${what} exceeded the maximum allowed size`, "Payload too large"),
  unsatisfiableRange: () => new StorageError(416, "InvalidRange", "invalid range provided", "invalid_range", 416),
  timedOut: () => new StorageError(408, "RequestTimeout", "The upload stalled. Try it again.", "RequestTimeout", 408),
  internal: () => new StorageError(500, "InternalError", "Internal server error", "Internal"),
};

/**
 * Turns whatever was thrown into what the client may see.
 *
 * The text of a database error stays hidden, with one exception on purpose: 42501, by which policies and triggers
 * refuse with words of their own.
 */
export function asRefusal(thrown: unknown): StorageError {
  if (thrown instanceof StorageError) return thrown;
  if (!(thrown instanceof PostgresError)) return refusals.internal();
  switch (thrown.code) {
    case "42501":
      return refusals.accessDenied(
        thrown.message.includes("row-level security") ? "new row violates row-level security policy" : thrown.message,
      );
    case "23505":
      return refusals.alreadyExists();
    case "23503":
      return new StorageError(404, "InvalidRequest", "The related resource does not exist");
    case "22P02":
    case "22P05":
      return refusals.invalidParameter(thrown.message);
    case "55P03":
      return new StorageError(423, "ResourceLocked", "The resource is locked");
    case "57014":
      return new StorageError(544, "DatabaseTimeout", "The connection to the database timed out");
    default:
      return new StorageError(500, "DatabaseError", `database error, code: ${thrown.code}`);
  }
}
