"""What the project lets in: which schemas the Data API shows, and how Auth takes new users.

supabase/config.toml is not pushed: it describes a laptop, with a site on loopback and addresses that nobody confirms.
"""

from __future__ import annotations

import asyncio

from local.deploy.check import ask
from local.deploy.step import Plan
from local.deploy.target import Target
from local.errors import StackError

_SETTING = "Project Settings, Data API, Exposed schemas"


async def plan_schemas(target: Target) -> Plan:
    """Ask the Data API for a table of each schema; raises StackError where `ingest` is shown, or `public` is not."""
    shown = {schema: await asyncio.to_thread(_is_shown, target, schema) for schema in ("public", "ingest")}
    if shown["ingest"]:
        raise StackError(f"The Data API shows the schema ingest, which is internal. Take it out there: {_SETTING}.")
    if not shown["public"]:
        raise StackError(f"The Data API does not show the schema public. Add it there: {_SETTING}.")
    return Plan("The Data API shows public, and does not show ingest.")


async def plan_auth(target: Target) -> Plan:
    """Ask Auth for its settings; what is theirs to decide is a warning."""
    answer = await asyncio.to_thread(ask, target, "/auth/v1/settings")
    if answer.status_code != 200:
        raise StackError(
            f"Auth answers {answer.status_code} at {target.api_url}/auth/v1/settings. Is the project paused?"
        )
    settings = answer.json()
    unconfirmed = bool(settings.get("mailer_autoconfirm"))
    closed = bool(settings.get("disable_signup"))
    said = f"Addresses are {'not ' if unconfirmed else ''}confirmed; signing up is {'closed' if closed else 'open'}."
    warnings = (
        (
            "Nobody confirms an e-mail address, and an invitation by e-mail is whose address it says: turn on "
            "Authentication, Sign In / Providers, Confirm email.",
        )
        if unconfirmed and target.hosted
        else ()
    )
    return Plan(said + " config.toml is not pushed: it describes a laptop.", warnings=warnings)


def _is_shown(target: Target, schema: str) -> bool:
    answer = ask(target, "/rest/v1/jobs?limit=0", **{"accept-profile": schema})
    if answer.status_code == 406 and "PGRST106" in answer.text:
        return False
    if answer.status_code in (401, 403) and "42501" not in answer.text:
        raise StackError(
            f"{target.api_url} does not know SUPABASE_SECRET_KEY: it is a key of another project, or disabled."
        )
    return True
