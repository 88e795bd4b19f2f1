"""Edge functions: uploaded where they differ from what is there, and each asked once whether it runs.

The platform tells the digest of a bundle that it made, never of its sources. So what was deployed is noted as one more
setting of the functions: a digest over our sources and over the bundles that the platform has. Both must still be the
same for the functions to be left alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import tomllib
from pathlib import Path
from typing import Any

from local.deploy import management
from local.deploy.check import ask
from local.deploy.hooks import digest
from local.deploy.step import Plan
from local.deploy.target import Target
from local.errors import StackError

NOTE = "SLUICE_DEPLOYED"
# What a GET, which needs no user and changes nothing, is answered.
_EXPECTED = {"health": (200, 503)}
_OTHERS = (405,)
# A function that was just deployed may be cold, or not yet everywhere.
WAITS = (0.0, 1.0, 3.0, 6.0, 10.0)


async def plan(target: Target) -> Plan:
    """Say which functions differ; where none does, each is asked whether it runs."""
    ours = names(target.project)
    if not target.hosted:
        await _all_answer(target, ours)
        return Plan(f"The local server runs {', '.join(ours)} from this folder. Each answers.")
    there, listed = await asyncio.gather(management.functions(target), management.secrets(target))
    missing = [name for name in ours if name not in there]
    if not missing and listed.get(NOTE) == digest(_note(target.project, there)):
        await _all_answer(target, ours)
        return Plan(f"{', '.join(ours)} are deployed as they are here. Each answers.")
    return Plan(
        f"{len(ours) - len(missing)} of {len(ours)} functions are there."
        if missing
        else "What is there was made of other sources, or deployed by something else.",
        tuple(f"deploy {name}" for name in ours),
    )


async def apply(target: Target) -> str:
    """Deploy all of them, ask each whether it runs, then note what was deployed."""
    ours = names(target.project)
    await management.deploy(target, ours)
    await _all_answer(target, ours)
    there = await management.functions(target)
    await management.set_secrets(target, {NOTE: _note(target.project, there)})
    return f"Deployed {', '.join(ours)}. Each answers."


def names(project: Path) -> list[str]:
    """Return the functions of the checkout; folders that begin with an underscore are shared code."""
    folder = project / "supabase" / "functions"
    return sorted(each.parent.name for each in folder.glob("*/index.ts") if not each.parent.name.startswith(("_", ".")))


def _note(project: Path, there: dict[str, dict[str, Any]]) -> str:
    """Return the digest over our sources, their settings in config.toml, and the bundles that were made of them."""
    whole = hashlib.sha256()
    folder = project / "supabase" / "functions"
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            whole.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    config = tomllib.loads((project / "supabase" / "config.toml").read_text()).get("functions", {})
    whole.update(repr(sorted((name, sorted(each.items())) for name, each in config.items())).encode())
    for name in names(project):
        bundle = there.get(name, {})
        whole.update(
            f"{name} {bundle.get('ezbr_sha256') or bundle.get('version')} {bundle.get('verify_jwt')}\n".encode()
        )
    return whole.hexdigest()


async def _all_answer(target: Target, ours: list[str]) -> None:
    await asyncio.gather(*(answers(target, name) for name in ours))


async def answers(target: Target, name: str) -> None:
    """Ask until it answers as it does when it runs; raises StackError with what it said instead."""
    expected = _EXPECTED.get(name, _OTHERS)
    said = ""
    for wait in WAITS if target.hosted else (0.0,):
        await asyncio.sleep(wait)
        answer = await asyncio.to_thread(ask, target, f"/functions/v1/{name}")
        if answer.status_code in expected and "BOOT_ERROR" not in answer.text:
            return
        said = f"{answer.status_code}: {answer.text[:200]}"
        if answer.status_code == 401:
            break
    why = (
        f"its gateway asks for a JWT, so [functions.{name}] in supabase/config.toml lacks verify_jwt = false"
        if said.startswith("401")
        else "look at its logs in the dashboard"
        if target.hosted
        else "a stack serves the functions that were there when it started: start it anew"
    )
    raise StackError(f"The function {name} does not run; {why}. It answered {said}")
