"""How edge functions read what they are sent: whole, or not to its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from local import deno
from tests.functions import DIRECTORY

_SCRIPT = """
import { readBody } from "BODY";
const stream = (pieces: number[], ends: boolean) => new ReadableStream({
  start(controller) {
    for (const size of pieces) controller.enqueue(new Uint8Array(size));
    if (ends) controller.close();
  },
});
const said: unknown[] = [];
for (const [pieces, ends] of [[[4, 4], true], [[8, 1], true], [[8], false], [[9], false]] as [number[], boolean][]) {
  const request = new Request("http://here", { method: "POST", body: stream(pieces, ends) });
  let taken = 0;
  said.push([await readBody(request, 8, (piece) => taken += piece.byteLength, 0.3), taken]);
}
console.log(JSON.stringify(said));
"""


async def test_a_body_is_read_whole_or_is_too_large_or_too_slow(tmp_path: Path) -> None:
    script = tmp_path / "bodies.ts"
    script.write_text(_SCRIPT.replace("BODY", (DIRECTORY / "_shared" / "body.ts").as_uri()))
    process = await asyncio.create_subprocess_exec(
        *deno.command(script, f"--allow-read={tmp_path}"), env=deno.environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert json.loads(out) == [["whole", 8], ["too large", 8], ["too slow", 8], ["too large", 0]]
