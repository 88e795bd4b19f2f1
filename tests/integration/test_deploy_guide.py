"""What docs/deploy.md says: its first document is uploaded and found as it is written, and it names what there is."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest

from local.deno import REPOSITORY
from local.deploy.run import STEPS
from local.deploy.target import FUNCTION_SETTINGS
from local.embeddings_process import embedding
from local.stack import Stack
from local.worker_process import working
from tests.integration.deploying import environment

GUIDE = (REPOSITORY / "docs" / "deploy.md").read_text()
SCRIPT = (REPOSITORY / "scripts" / "deploy").read_text().split("\nset -euo")[0]
(FIRST_DOCUMENT,) = re.findall(r"```bash\n(field\(\).*?)```", GUIDE, re.DOTALL)


@pytest.mark.timeout(300)
async def test_the_first_document_is_ready_and_found_as_the_guide_says(
    tmp_path: Path, temporary_directory: Path
) -> None:
    async with (
        embedding(tmp_path / "embeddings.log") as url,
        Stack(temporary_directory / "guide", durable=False, functions={"SLUICE_EMBEDDINGS_URL": url}) as stack,
        working(stack, tmp_path / "worker.log"),
    ):
        person = {"email": "first@example.com", "password": "a-password-of-theirs"}
        async with httpx.AsyncClient(headers={"apikey": stack.publishable_key}) as client:
            (await client.post(f"{stack.api_url}/auth/v1/signup", json=person)).raise_for_status()
        process = await asyncio.create_subprocess_exec(
            "bash", "-euo", "pipefail", "-c", FIRST_DOCUMENT,
            env=environment(
                {
                    "SUPABASE_URL": stack.api_url,
                    "EMAIL": person["email"],
                    "PASSWORD": person["password"],
                    "SUPABASE_PUBLISHABLE_KEY": stack.publishable_key,
                }
            ),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 120)

    assert process.returncode == 0, out + err
    assert b"harbour.md is ready" in out
    assert b"The tide gauge stands at the eastern quay." in out.splitlines()[-1]


def test_the_guide_and_the_script_name_every_step_in_its_order() -> None:
    names = [step.name for step in STEPS]
    rows = re.findall(r"^\| ([a-z ]+) \| [^|]+ \|[^|]*\|$", GUIDE, re.MULTILINE)

    assert [row for row in rows if row in names] == names
    assert ", ".join(names) in re.sub(r"\n# ", " ", SCRIPT)
    assert [name for name in FUNCTION_SETTINGS if name not in SCRIPT] == []


def test_every_option_that_the_guide_names_is_the_scripts() -> None:
    named = set(re.findall(r"scripts/deploy[^`\n]*?(--[a-z-]+)", GUIDE)) | {"--rotate-password", "--show"}

    assert [option for option in named if option not in SCRIPT] == []
