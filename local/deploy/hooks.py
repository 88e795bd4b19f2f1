"""What the edge functions read from their environment. Neither they nor a trigger read anything from the Vault."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from local.deploy import management
from local.deploy.step import Plan
from local.deploy.target import FUNCTION_SETTINGS, LOOPBACK, Target


async def plan(target: Target) -> Plan:
    """Compare the values by their digests, which is all that the platform tells of them."""
    if not target.hosted:
        return Plan("The local server has its own. Nothing is kept in the Vault.")
    wanted = _wanted(target)
    listed = await management.secrets(target)
    changes = tuple(
        f"{'change' if name in listed else 'set'} {name}" for name in wanted if listed.get(name) != digest(wanted[name])
    )
    ours = [name for name in FUNCTION_SETTINGS if name in wanted or name in listed]
    return Plan(
        f"{len(ours)} of {len(FUNCTION_SETTINGS)} settings of the functions: {', '.join(ours) or 'none'}. "
        "Nothing is kept in the Vault.",
        changes,
        (*warnings(target, listed), *_uncommitted(target.project)),
    )


async def apply(target: Target) -> str:
    """Set those that differ; one that is not given here stays as it is there."""
    listed = await management.secrets(target)
    differing = {name: value for name, value in _wanted(target).items() if listed.get(name) != digest(value)}
    await management.set_secrets(target, differing)
    return f"Set {', '.join(differing)}."


def digest(value: str) -> str:
    """Return what the platform lists instead of a value."""
    return hashlib.sha256(value.encode()).hexdigest()


def _wanted(target: Target) -> dict[str, str]:
    wanted = {name: target.given[name] for name in FUNCTION_SETTINGS if name in target.given}
    commit = _git(target.project, "rev-parse", "HEAD")
    return ({"SLUICE_GIT_SHA": commit} if commit else {}) | wanted


def _uncommitted(project: Path) -> list[str]:
    if _git(project, "status", "--porcelain", "--", "supabase"):
        return ["The folder supabase/ has changes that no commit holds: what is deployed cannot be told by its commit."]
    return []


def _git(project: Path, *arguments: str) -> str | None:
    """Return what git says of a checkout; None where there is no git, or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", project, *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def warnings(target: Target, listed: Mapping[str, str]) -> list[str]:
    """Return what a person should look at, given the settings that are there."""
    url = target.given.get("SLUICE_EMBEDDINGS_URL")
    if url is None and "SLUICE_EMBEDDINGS_URL" not in listed:
        return ["The function search answers 503 until SLUICE_EMBEDDINGS_URL names a server that it can reach."]
    if url is not None and urlsplit(url).hostname in LOOPBACK:
        return ["SLUICE_EMBEDDINGS_URL is this machine's own address, which no function there can reach."]
    return []
