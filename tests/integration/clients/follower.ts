// Follows channels with the real supabase-js: one JSON command a line on standard input; what the client hears, one
// JSON object a line on standard output, with the time at which it was heard, in milliseconds since 1970.
import { createClient, type RealtimeChannel, type SupabaseClient } from "@supabase/supabase-js";

interface Command {
  do: "follow" | "send" | "refresh" | "leave";
  name: string;
  key: string;
  token: string | null;
  topic: string;
  private: boolean;
  /** What is followed of Postgres Changes, if anything. */
  changes?: { event: "*"; schema: string; table: string; filter?: string };
  event: string;
  payload: Record<string, unknown>;
}

const followers = new Map<string, { client: SupabaseClient; channel: RealtimeChannel }>();
const tokens = new Map<string, string | null>();

function say(name: string, kind: string, said: unknown): void {
  const at = performance.timeOrigin + performance.now();
  const line = new TextEncoder().encode(JSON.stringify({ name, kind, at, said }) + "\n");
  for (let written = 0; written < line.length;) written += Deno.stdout.writeSync(line.subarray(written));
}

async function follow({ name, key, token, topic, changes, ...given }: Command): Promise<void> {
  tokens.set(name, token);
  const accessToken = token === null ? {} : { accessToken: () => Promise.resolve(tokens.get(name)!) };
  const client = createClient(Deno.args[0], key, { ...accessToken, auth: { persistSession: false } });
  await client.realtime.setAuth();
  const channel = client.channel(topic, { config: { private: given.private, broadcast: { ack: true } } });
  channel.on("broadcast", { event: "*" }, (heard) => say(name, "broadcast", heard));
  if (changes) channel.on("postgres_changes", changes, (heard) => say(name, "change", heard));
  channel.on("system", {}, (heard) => say(name, "system", heard));
  followers.set(name, { client, channel });
  channel.subscribe((state, error) => say(name, "state", { state, error: error?.message ?? null }));
}

async function run(command: Command): Promise<void> {
  if (command.do === "follow") return await follow(command);
  const { client, channel } = followers.get(command.name)!;
  if (command.do === "send") {
    const { event, payload } = command;
    say(command.name, "sent", await channel.send({ type: "broadcast", event, payload }, { timeout: 1000 }));
  } else if (command.do === "refresh") {
    tokens.set(command.name, command.token);
    await client.realtime.setAuth();
  } else {
    say(command.name, "left", await client.removeChannel(channel));
  }
}

let rest = "";
for await (const text of Deno.stdin.readable.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + text).split("\n");
  rest = lines.pop() ?? "";
  for (const line of lines) run(JSON.parse(line)).catch((error) => say("", "failed", String(error)));
}
Deno.exit(0);
