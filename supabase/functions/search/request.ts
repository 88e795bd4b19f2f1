// What a search may ask for; everything else is refused.
import { Refusal } from "../_shared/answer.ts";

const MAX_QUERY = 4000;

export interface Search {
  query: string;
  match_count: number;
  filters: Record<string, unknown>;
}

/** Reads the body; throws a Refusal that says what is wrong with it. The database looks into the filters. */
export function readSearch(bytes: Uint8Array): Search {
  let body: unknown;
  try {
    body = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw invalid("The body is not JSON in UTF-8.");
  }
  if (!isObject(body)) throw invalid("The body must be a JSON object with a query.");
  const { query, match_count = 10, filters = {}, ...others } = body;
  if (Object.keys(others).length > 0) throw invalid("The body may hold query, match_count and filters, nothing else.");
  if (typeof query !== "string" || query.trim() === "") throw invalid("query must be a text that is not empty.");
  // As the database counts: code points.
  if ([...query].length > MAX_QUERY) throw invalid(`query may have ${MAX_QUERY} characters at most.`);
  if (query.includes("\0") || !query.isWellFormed()) throw invalid("query holds what is not text.");
  if (typeof match_count !== "number" || !Number.isInteger(match_count) || match_count < 1 || match_count > 100) {
    throw invalid("match_count must be a whole number from 1 to 100.");
  }
  if (!isObject(filters)) throw invalid("filters must be a JSON object.");
  return { query, match_count, filters };
}

/** The tenants that are asked for, where the filter is one; what it should be otherwise, the database says. */
export function tenantsOf({ filters }: Search): string[] | null {
  const ids = filters.tenant_ids;
  const isId = (id: unknown) => typeof id === "string" && /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(id);
  return Array.isArray(ids) && ids.every(isId) ? ids : null;
}

export function invalid(message: string): Refusal {
  return new Refusal(400, "invalid_request", message);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
