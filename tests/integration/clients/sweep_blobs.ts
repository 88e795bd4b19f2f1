// Sweeps one directory of blobs against one database, as the server does when it starts; prints how many went.
import { Blobs } from "../../../local/server/storage/blobs.ts";
import { connect } from "../../../local/server/storage/database.ts";

const database = connect(Deno.env.get("DATABASE_URL")!);
console.log(await new Blobs(Deno.args[0]).sweep(database));
await database.end();
