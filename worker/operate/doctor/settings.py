"""The settings: whether they can be read, and whether they agree."""

from __future__ import annotations

import difflib

from worker.operate.doctor.check import Check, Problem
from worker.operate.doctor.examination import Examination
from worker.settings import Settings

INVALID = Problem(
    "settings_invalid",
    "These settings are missing or wrong: {which}.",
    "Set or correct them in the environment of the worker; docs/deploy.md says where each comes from.",
)
MISSPELT = Problem(
    "setting_misspelt",
    "{name} is not a setting and has no effect.",
    "Rename it to {meant}, if that is what is meant.",
    warning=True,
)
RENEWED_TOO_LATE = Problem(
    "lease_renewed_too_late",
    "Leases last {lease:g} s and are renewed only every {renew:g} s, so one slow renewal loses the work.",
    "Set SLUICE_RENEW_SECONDS to a third of SLUICE_LEASE_SECONDS or less.",
)
EMBEDDING_KEY_MISSING = Problem(
    "embedding_key_missing",
    "SLUICE_EMBEDDER is openai, but neither OPENAI_API_KEY nor OPENAI_BASE_URL is set.",
    "Set OPENAI_API_KEY, or OPENAI_BASE_URL for a server that wants no key.",
)
PARSER_KEY_MISSING = Problem(
    "parser_key_missing",
    "SLUICE_PARSER is {parser}, but LLAMA_CLOUD_API_KEY is not set.",
    "Set LLAMA_CLOUD_API_KEY, or SLUICE_PARSER=local.",
)


async def readable(examination: Examination) -> str:
    """Say which variables are missing or wrong."""
    if examination.wrong:
        raise INVALID.found(which="; ".join(f"{name}: {why}" for name, why in examination.wrong.items()))
    return "All settings can be read."


async def spelling(examination: Examination) -> str:
    """Notice SLUICE_ variables that are nearly a setting's name."""
    known = {f"SLUICE_{name.upper()}" for name in Settings.model_fields}
    for field in Settings.model_fields.values():
        known.update(getattr(field.validation_alias, "choices", ()))
    for name in sorted(examination.environment):
        if name.startswith("SLUICE_") and name not in known:
            # Nearly only: scripts and functions have variables of their own with this prefix.
            for meant in difflib.get_close_matches(name, known, n=1, cutoff=0.9):
                raise MISSPELT.found(name=name, meant=meant)
    return "No setting is misspelt."


async def agreement(examination: Examination) -> str:
    """Compare settings that depend on each other."""
    settings = examination.settings
    if settings.renew_seconds > settings.lease_seconds / 2:
        raise RENEWED_TOO_LATE.found(lease=settings.lease_seconds, renew=settings.renew_seconds)
    if settings.embedder == "openai" and not settings.openai_api_key and not settings.openai_base_url:
        raise EMBEDDING_KEY_MISSING.found()
    if settings.parser != "local" and not settings.llama_cloud_api_key:
        raise PARSER_KEY_MISSING.found(parser=settings.parser)
    return "The settings agree with each other."


CHECKS = (
    Check("settings", "settings", "Every setting is there and can be read", readable, (INVALID,)),
    Check("setting_names", "settings", "No setting is misspelt", spelling, (MISSPELT,)),
    Check(
        "settings_agree", "settings", "Settings that depend on each other agree", agreement,
        (RENEWED_TOO_LATE, EMBEDDING_KEY_MISSING, PARSER_KEY_MISSING),
    ),
)  # fmt: skip
