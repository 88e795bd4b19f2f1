// Prints the DDL of schema auth as the local Auth server wants it; owners and grants are set in auth.sql.
import { getAuthSchemaSql } from "@supabase/lite";

console.log(getAuthSchemaSql(true));
