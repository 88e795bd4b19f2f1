// What a follower may do on a private channel, by the policies on realtime.messages: the real server's way, rows that
// are inserted, looked at in the follower's role, and rolled back.

import { type Caller, type Database, PostgresError, type Transaction } from "../storage/database.ts";

const ROLLBACK = Symbol("rollback");

/** Takes the caller's role and claims for the rest of the transaction. */
export async function assume(tx: Transaction, { role, sub, claims }: Caller, topic = ""): Promise<void> {
  await tx`select
    set_config('role', ${role}, true),
    set_config('realtime.topic', ${topic}, true),
    set_config('request.jwt.claims', ${JSON.stringify(claims)}, true),
    set_config('request.jwt.claim.role', ${role}, true),
    set_config('request.jwt.claim.sub', ${sub ?? ""}, true)`;
}

/** Whether a select finds a row of this topic. */
export async function mayReceive(database: Database, caller: Caller, topic: string): Promise<boolean> {
  return await rolledBack(database, async (tx) => {
    const [{ id }] = await tx`
      insert into realtime.messages (topic, extension) values (${topic}, 'broadcast') returning id`;
    await assume(tx, caller, topic);
    return (await tx`select from realtime.messages where id = ${id}`).length > 0;
  });
}

/** Whether an insert of this topic passes. */
export async function maySend(database: Database, caller: Caller, topic: string): Promise<boolean> {
  return await rolledBack(database, async (tx) => {
    await assume(tx, caller, topic);
    await tx`insert into realtime.messages (topic, extension) values (${topic}, 'broadcast')`;
    return true;
  });
}

/** Runs `work` and rolls it back; false where a right is missing. */
async function rolledBack(database: Database, work: (tx: Transaction) => Promise<boolean>): Promise<boolean> {
  let answer = false;
  try {
    await database.begin(async (tx) => {
      answer = await work(tx);
      throw ROLLBACK;
    });
  } catch (thrown) {
    if (thrown instanceof PostgresError && thrown.code === "42501") return false;
    if (thrown !== ROLLBACK) throw thrown;
  }
  return answer;
}
