"""The management API, as far as deploying needs it, through the CLI: a project's functions and their settings."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from local import supabase_cli
from local.deploy.target import Target
from local.errors import StackError

# Functions are uploaded, and bundled there, one after another.
_DEPLOY_SECONDS = 600


async def functions(target: Target) -> dict[str, dict[str, Any]]:
    """Return the project's functions by slug, each with `version`, `verify_jwt` and perhaps `ezbr_sha256`."""
    said = await _ask(target, "functions", "list")
    return {each["slug"]: each for each in said["functions"]}


async def secrets(target: Target) -> dict[str, str]:
    """Return the names of the functions' settings, each with its value's SHA-256 in hex; values are never told."""
    said = await _ask(target, "secrets", "list")
    return {each["name"]: each["value"] for each in said["secrets"]}


async def set_secrets(target: Target, values: Mapping[str, str]) -> None:
    """Set these, and leave the others; a value is one line without a single quote."""
    lines = "".join(f"{name}='{value}'\n" for name, value in values.items())
    await _ask(target, "secrets", "set", "--env-file", "/dev/stdin", "--yes", given=lines.encode())


async def deploy(target: Target, names: list[str]) -> None:
    """Upload these functions; with more than one all go live together, or none."""
    await _ask(target, "functions", "deploy", *names, "--use-api", "--yes", timeout=_DEPLOY_SECONDS)


async def _ask(target: Target, *arguments: str, given: bytes | None = None, timeout: float = 120) -> dict[str, Any]:
    try:
        said = await supabase_cli.run(
            *arguments, f"--remote={target.name}", "--output-format", "json", project=target.project,
            secrets={"SUPABASE_ACCESS_TOKEN": target.access_token}, given=given, timeout=timeout,
        )  # fmt: skip
    except StackError as exc:
        raise StackError(_reason(target, " ".join(arguments[:2]), str(exc))) from exc
    answer: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return answer


def _reason(target: Target, what: str, said: str) -> str:
    """Say in a sentence what the API's status means; what else the CLI said follows it."""
    message = said
    for line in said.splitlines():
        if line.startswith("{") and '"error"' in line:
            message = json.loads(line)["error"]["message"]
    status = re.search(r"\bstatus:? (\d{3})", message)
    told = {
        "401": "Supabase does not know SUPABASE_ACCESS_TOKEN: it is mistyped, was revoked or has expired.",
        "403": f"SUPABASE_ACCESS_TOKEN may not do this on project {target.name}.",
        "404": f"There is no project {target.name} that SUPABASE_ACCESS_TOKEN may see.",
    }.get(
        status[1] if status else "",
        f"supabase {what} failed on project {target.name}; nothing says that it is lasting.",
    )
    return f"{told}\n({message[:600]})"
