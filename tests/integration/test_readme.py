"""What the README shows is run, and what it lists is complete."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from local import deno, samples
from local.install import MODELS
from local.stack import Stack
from local.worker_process import working
from worker.pipeline.embed.local import LocalEmbedder
from worker.settings import Settings

README = (deno.REPOSITORY / "README.md").read_text()
QUESTION = samples.QUESTIONS[0]

# What the example leaves to the reader: who signs in, which file, which question, and the question's vector.
_BEFORE = """
const given = (name: string) => Deno.env.get(name)!;
const [SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY, question] = ["URL", "KEY", "QUESTION"].map(given);
const [email, password] = ["readme@example.com", crypto.randomUUID()];
await createClient(SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY).auth.signUp({ email, password });
const file = new Blob([await Deno.readFile(given("FILE"))]);
const embed = (_: string) => Promise.resolve(JSON.parse(given("VECTOR")));
"""


async def test_the_example_uploads_follows_and_finds(stack: Stack, tmp_path: Path) -> None:
    (example,) = re.findall(r"```ts\n(.*?)```", README, re.DOTALL)
    script = tmp_path / "example.ts"
    script.write_text(_BEFORE + example + "\nDeno.exit(0);\n")
    samples.write(tmp_path)
    embedder = LocalEmbedder(MODELS)
    (vector,) = await embedder.embed([QUESTION.ask])
    await embedder.aclose()
    given = {
        "URL": stack.api_url, "KEY": stack.publishable_key, "QUESTION": QUESTION.ask,
        "FILE": str(tmp_path / QUESTION.document), "VECTOR": json.dumps(vector.tolist()),
    }  # fmt: skip

    async with working(stack, tmp_path / "worker.log"):
        process = await asyncio.create_subprocess_exec(
            *deno.command(script, "--no-check", "--allow-net=127.0.0.1", "--allow-env", f"--allow-read={tmp_path}"),
            env=deno.environment(given), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)

    assert process.returncode == 0, err.decode()
    first = out.decode().splitlines()[0]
    assert re.match(rf"[0-9a-f-]{{36}}/handbook\.pdf {QUESTION.page} ", first)
    assert len(example.splitlines()) <= 25


def test_every_setting_is_listed_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `([A-Z_]+)`[^|]*\| ([^|]*) \|", README, re.MULTILINE))

    for name, field in Settings.model_fields.items():
        aliases = getattr(field.validation_alias, "choices", [f"SLUICE_{name.upper()}"])
        assert aliases[0] in listed, name
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert float(eval(listed[aliases[0]].replace(" MiB", "*1024**2").replace(",", ""))) == field.default, name


def test_every_path_in_the_table_exists() -> None:
    (table,) = re.findall(r"^\| Path \| What \|\n(.*?)\n\n", README, re.DOTALL | re.MULTILINE)
    paths = [path for row in table.splitlines()[1:] for path in re.findall(r"`([\w./-]+/[\w./-]*)`", row.split("|")[1])]

    assert len(paths) > 8
    assert [path for path in paths if not (deno.REPOSITORY / path).exists()] == []
