// One user's way through Auth and REST with supabase-js; prints what came of it as one line of JSON.
import { createClient } from "@supabase/supabase-js";

const url = Deno.env.get("SUPABASE_URL")!;
const options = { auth: { persistSession: false, autoRefreshToken: false } };
const anonymous = createClient(url, Deno.env.get("SUPABASE_PUBLISHABLE_KEY")!, options);
const user = createClient(url, Deno.env.get("SUPABASE_PUBLISHABLE_KEY")!, options);
const server = createClient(url, Deno.env.get("SUPABASE_SECRET_KEY")!, options);
const credentials = { email: Deno.env.get("EMAIL")!, password: "correct horse battery" };

const signUp = Deno.env.get("EXISTING") ? null : await user.auth.signUp(credentials);
const signIn = await user.auth.signInWithPassword(credentials);
const wrong = await anonymous.auth.signInWithPassword({ ...credentials, password: "something else" });
const me = await user.auth.getUser();
const refreshed = await user.auth.refreshSession();

const tenants = await user.from("tenants").select("id");
const asAnonymous = await anonymous.from("tenants").select("id");
const documents = await user.from("documents").select("id", { count: "exact" });
const asServer = await server.from("documents").select("id");
const inserted = await user.from("documents").insert({ id: crypto.randomUUID() });
const internal = await user.schema("ingest").from("jobs").select("*");
const storageRows = await user.schema("storage").from("objects").select("*");
const noFunction = await user.functions.invoke("nothing-of-that-name");

console.log(JSON.stringify({
  id: signIn.data.user?.id ?? null,
  signUp: { error: signUp?.error?.message ?? null, session: Boolean(signUp?.data.session) },
  signIn: signIn.error?.message ?? null,
  wrong: wrong.error?.status ?? null,
  me: me.data.user?.email ?? null,
  refreshed: Boolean(refreshed.data.session),
  tenants: tenants.data?.map((row) => row.id) ?? tenants.error,
  asAnonymous: asAnonymous.data?.length ?? 0,
  documents: { error: documents.error?.message ?? null, count: documents.count },
  asServer: asServer.error?.message ?? null,
  inserted: inserted.error?.code ?? null,
  internal: internal.error?.code ?? null,
  storageRows: storageRows.error?.code ?? null,
  noFunction: noFunction.error?.context?.status ?? null,
}));
