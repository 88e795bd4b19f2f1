"""What docs/clients.md shows for supabase-js is taken out of it, type-checked and run, in its order."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import asyncpg
import pytest

from local import deno
from local.embeddings_process import embedding
from local.stack import Stack
from local.worker_process import working

GUIDE = (deno.REPOSITORY / "docs" / "clients.md").read_text()
SNIPPETS = re.findall(r"```ts\n(.*?)```", GUIDE, re.DOTALL)
TEXT = "# Harbour\n\nThe tide gauge stands at the eastern quay and is read every morning.\n"

# What the guide leaves to the reader: who signs in, which file, which question; and a file that nobody can read.
_BEFORE = """
const given = (name: string) => Deno.env.get(name)!;
const [SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY] = ["URL", "KEY"].map(given);
const [email, password] = ["guide@example.com", crypto.randomUUID()];
const question = "Where is the tide measured?";
const file = new Blob([given("TEXT")], { type: "text/markdown" });
await createClient(SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY).auth.signUp({ email, password });
"""
# In a browser tus-js-client takes the Blob itself. Its build for servers, the only one that runs without a browser's
# XMLHttpRequest, takes a stream and its length.
_TUS = """
import { Agent } from "node:http";
import { Readable } from "node:stream";
import { DefaultHttpStack, Upload as ServersUpload, type UploadOptions } from "tus-js-client";

class Upload extends ServersUpload {
  constructor(body: Blob, options: UploadOptions) {
    const httpStack = new DefaultHttpStack({ agent: new Agent({ keepAlive: false }) });
    super(Readable.fromWeb(body.stream() as never), { ...options, uploadSize: body.size, httpStack });
  }
}
"""
_BROKEN = """
const { data: broken } = await documents.upload(`${user.id}/broken.pdf`, new Blob(["%PDF-1.7 and no more"]), {
  contentType: "application/pdf",
});
console.log("broken", (await follow(broken!.id, () => {})).state);
"""
_AFTER = """
const [one] = await Promise.all([follow(large!.id, () => {})]);
console.log("large", one.state);
Deno.exit(0);
"""


@pytest.mark.timeout(300)
async def test_the_snippets_for_supabase_js_do_what_the_guide_says(tmp_path: Path, temporary_directory: Path) -> None:
    assert len(SNIPPETS) == 7
    retry = next(number for number, snippet in enumerate(SNIPPETS) if "retry_job" in snippet)
    parts = [*SNIPPETS[:retry], _BROKEN, SNIPPETS[retry], _AFTER]
    lines = "\n".join(parts).splitlines()
    imports = [line for line in lines if line.startswith("import ")]
    script = tmp_path / "guide.ts"
    imports.remove('import { Upload } from "tus-js-client";')
    lines.remove('import { Upload } from "tus-js-client";')
    script.write_text("\n".join([*imports, _TUS, _BEFORE, *(line for line in lines if line not in imports)]))
    (tmp_path / "database.types.ts").write_text((deno.REPOSITORY / "docs" / "database.types.ts").read_text())

    async with (
        embedding(tmp_path / "embeddings.log") as url,
        Stack(temporary_directory / "guide", durable=False, functions={"SLUICE_EMBEDDINGS_URL": url}) as stack,
        working(stack, tmp_path / "worker.log"),
    ):
        out = await _run(script, {"URL": stack.api_url, "KEY": stack.publishable_key, "TEXT": TEXT})
        connection = await asyncpg.connect(stack.admin_url)
        retried = await connection.fetchval(
            "select count(*) from public.job_events e join public.documents d on d.id = e.document_id"
            " where d.name like '%/broken.pdf' and e.event = 'retry' and e.detail ->> 'by' = 'member'"
        )
        states = await connection.fetch("select name, state, generation from public.documents order by name")
        await connection.close()

    said = out.splitlines()
    assert "ready" in said
    assert any(re.fullmatch(r"[0-9a-f-]{36}/handbook\.md 1 .*", line) for line in said), out
    assert "The tide gauge stands at the eastern quay and is read every morning." in out
    assert "broken failed" in said
    assert any(line.endswith("is tried again") for line in said), out
    assert "large ready" in said
    assert retried == 1
    assert [row["name"].split("/")[1] for row in states] == ["broken.pdf", "handbook.md", "large.md"]


async def _run(script: Path, given: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *deno.command(script, "--check", "--allow-net=127.0.0.1", "--allow-env", f"--allow-read={script.parent}"),
        env=deno.environment(given), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), 150)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, f"{err.decode()}\n{out.decode()}"
    return out.decode()


def test_what_is_not_run_is_labelled_so() -> None:
    run, _, rest = GUIDE.partition("## Other clients")
    assert "Not run here" in rest.split("###")[0]
    assert "```ts\n" not in rest
    assert set(re.findall(r"```(\w+)\n", run)) == {"ts"}
