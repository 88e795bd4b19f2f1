"""What the edge functions read from their environment. Neither they nor a trigger read anything from the Vault."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
        tuple(warnings(target, listed)),
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
    return {name: target.given[name] for name in FUNCTION_SETTINGS if name in target.given}


def warnings(target: Target, listed: Mapping[str, str]) -> list[str]:
    """Return what a person should look at, given the settings that are there."""
    url = target.given.get("SLUICE_EMBEDDINGS_URL")
    if url is None and "SLUICE_EMBEDDINGS_URL" not in listed:
        return ["The function search answers 503 until SLUICE_EMBEDDINGS_URL names a server that it can reach."]
    if url is not None and urlsplit(url).hostname in LOOPBACK:
        return ["SLUICE_EMBEDDINGS_URL is this machine's own address, which no function there can reach."]
    return []
