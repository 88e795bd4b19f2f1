"""What is deployed to: a hosted project, named by the environment, or the embedded stack of this machine."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from dotenv import dotenv_values

from local import deno
from local.errors import StackError
from local.lock import Lock
from local.postgres import SUPERUSER
from local.secrets import WORKER_ROLE, Secrets
from worker.settings import Settings as WorkerSettings

KEPT = deno.REPOSITORY / ".sluice" / "deploy"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# What the edge functions read from their environment; the platform gives them the rest.
FUNCTION_SETTINGS = (
    "SLUICE_EMBEDDINGS_URL", "SLUICE_EMBEDDINGS_KEY", "SLUICE_CORS_ORIGINS", "SLUICE_WEBHOOK_SECRET", "SLUICE_GIT_SHA",
)  # fmt: skip
_REQUIRED = {
    "SUPABASE_URL": "the project's URL",
    "SUPABASE_DB_URL": "the database as postgres, by the session pooler or directly",
    "SUPABASE_SECRET_KEY": "a secret key of the project, sb_secret_…",
    "SUPABASE_ACCESS_TOKEN": "an access token of yours, sbp_…",
}
_REF = re.compile(r"[a-z]{20}")
_PASSWORD = re.compile(r"[!-~]{16,128}")


class WrongSettings(Exception):
    """Settings are missing or cannot be right; the message has a line for each."""


@dataclass(frozen=True, slots=True, repr=False)
class Target:
    """One project, and everything that is known of it; printing one shows nothing."""

    name: str
    hosted: bool
    api_url: str
    database_url: str
    """The database as its owner, `postgres`."""
    secret_key: str
    access_token: str
    password: str | None
    """The worker's, where it was given; else one is made."""
    given: Mapping[str, str]
    """What was set besides, for the worker and for the functions."""
    ca_file: str | None = None
    admin_url: str | None = None
    """The superuser of the embedded stack, which lends `postgres` what the hosted platform lets it do."""
    project: Path = deno.REPOSITORY
    kept: Path = KEPT
    rotate: bool = False

    @property
    def kept_environment(self) -> Path:
        """Where the worker's environment is kept, readable by its owner only."""
        return self.kept / f"{self.name}.env"

    @property
    def host(self) -> str:
        """Where the database is."""
        return urlsplit(self.database_url).hostname or ""

    def worker_url(self, password: str) -> str:
        """Return the database URL with which the worker logs in; a pooler wants the project behind the role."""
        parts = urlsplit(self.database_url)
        _, dot, project = (parts.username or "").partition(".")
        port = f":{parts.port}" if parts.port else ""
        return urlunsplit(
            parts._replace(netloc=f"{WORKER_ROLE}{dot}{project}:{quote(password, safe='')}@{parts.hostname}{port}")
        )


def read(file: Path | None) -> dict[str, str]:
    """Return the settings: the environment, and before it what `file` holds as NAME=value lines.

    The file comes first, so that a variable left over in a shell never takes it to another project.
    """
    found = dict(os.environ)
    if file is not None:
        found |= {name: value for name, value in dotenv_values(file, interpolate=False).items() if value is not None}
    return {name: value for name, value in found.items() if value != ""}


def hosted(settings: Mapping[str, str], *, rotate: bool = False, kept: Path = KEPT) -> Target:
    """Return the hosted project that the settings name; raises WrongSettings for all that is wrong with them."""
    wrong = [f"  {name} is not set: {what}" for name, what in _REQUIRED.items() if name not in settings]
    url, database = settings.get("SUPABASE_URL", "").rstrip("/"), settings.get("SUPABASE_DB_URL", "")
    ref = settings.get("SUPABASE_PROJECT_REF") or _ref_of(url)
    if url and not ref:
        wrong.append(
            "  SUPABASE_PROJECT_REF is not set: the project's 20 letters, which this SUPABASE_URL does not show"
        )
    elif ref and not _REF.fullmatch(ref):
        wrong.append("  SUPABASE_PROJECT_REF must be the project's 20 lower-case letters")
        ref = ""
    wrong += _wrong_with_urls(url, database, ref)
    key = settings.get("SUPABASE_SECRET_KEY", "")
    if key.startswith("sb_publishable_") or _claim(key, "role") == "anon":
        wrong.append("  SUPABASE_SECRET_KEY is a publishable key; the worker needs a secret one, sb_secret_…")
    elif ref and (other := _claim(key, "ref")) and other != ref:
        wrong.append(f"  SUPABASE_SECRET_KEY is a key of project {other}, and SUPABASE_URL is {ref}")
    if (password := settings.get("SLUICE_WORKER_PASSWORD")) and not _PASSWORD.fullmatch(password):
        wrong.append("  SLUICE_WORKER_PASSWORD must be 16 to 128 printable ASCII characters without blanks")
    if (ca_file := settings.get("DATABASE_CA_FILE")) and not Path(ca_file).is_file():
        wrong.append(f"  DATABASE_CA_FILE: there is no file {ca_file}")
    for name in FUNCTION_SETTINGS:
        if re.search(r"['\r\n]", settings.get(name, "")):
            wrong.append(f"  {name} must be one line without a single quote")
    if wrong:
        raise WrongSettings("\n".join(wrong))
    return Target(
        name=ref, hosted=True, api_url=url, database_url=database, secret_key=key,
        access_token=settings["SUPABASE_ACCESS_TOKEN"], password=password, given=_besides(settings),
        ca_file=ca_file, rotate=rotate, kept=kept,
    )  # fmt: skip


def embedded(directory: Path, settings: Mapping[str, str], *, kept: Path = KEPT) -> Target:
    """Return the embedded stack that runs in `directory`; raises StackError where none does."""
    facts = Lock(directory / "lock").said()
    if not facts or "api_url" not in facts:
        raise StackError(
            f"Nothing runs in {directory}. Start a stack there first: python -m local up --directory {directory}"
        )
    secrets = Secrets.kept_in(directory / "secrets.json")
    parts = urlsplit(facts["database_url"])
    admin = f"{SUPERUSER}:{quote(secrets.passwords[SUPERUSER], safe='')}@{parts.hostname}:{parts.port}"
    return Target(
        name="local", hosted=False, api_url=facts["api_url"], database_url=facts["database_url"],
        secret_key=facts["secret_key"], access_token="", given=_besides(settings),
        # The stack's own: the worker that scripts/dev starts has it.
        password=secrets.passwords[WORKER_ROLE], admin_url=urlunsplit(parts._replace(netloc=admin)),
        kept=kept,
    )  # fmt: skip


def _wrong_with_urls(url: str, database: str, ref: str) -> list[str]:
    wrong = []
    site = urlsplit(url)
    if url and (site.scheme != "https" and site.hostname not in LOOPBACK):
        wrong.append("  SUPABASE_URL must begin with https://")
    if not database:
        return wrong
    parts = urlsplit(database)
    user, _, behind = unquote(parts.username or "").partition(".")
    direct = re.fullmatch(r"db\.([a-z]{20})\.supabase\.co", parts.hostname or "")
    named = behind or (direct[1] if direct else "")
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.password:
        wrong.append("  SUPABASE_DB_URL must be postgresql://postgres…:PASSWORD@HOST:5432/postgres")
    elif user != "postgres":
        wrong.append(f"  SUPABASE_DB_URL logs in as {user}; migrations belong to postgres")
    elif parts.port == 6543:
        wrong.append("  SUPABASE_DB_URL is the transaction pooler (6543); take the session pooler, port 5432")
    elif (parts.hostname or "").endswith(".pooler.supabase.com") and not behind:
        wrong.append(f"  SUPABASE_DB_URL: the pooler wants the project in the user's name, postgres.{ref}")
    elif named and ref and named != ref:
        wrong.append(f"  SUPABASE_DB_URL is project {named}, and SUPABASE_URL is {ref}")
    return wrong


def _ref_of(url: str) -> str:
    match = re.fullmatch(r"([a-z]{20})\.supabase\.(co|in)", urlsplit(url).hostname or "")
    return match[1] if match else ""


def _claim(key: str, name: str) -> str | None:
    """Return a claim of a legacy key, which is a JWT and says whose it is; of any other key None."""
    try:
        body = key.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))).get(name))
    except (IndexError, ValueError, binascii.Error):
        return None


def _besides(settings: Mapping[str, str]) -> dict[str, str]:
    """Return what the worker and the functions read besides the addresses and keys that come from the target."""
    names = list(FUNCTION_SETTINGS)
    for name, field in WorkerSettings.model_fields.items():
        alias = field.validation_alias
        names += [str(each) for each in getattr(alias, "choices", [])] or [f"SLUICE_{name.upper()}"]
    ours = {"DATABASE_URL", "SLUICE_DATABASE_URL", "SUPABASE_URL", "SLUICE_SUPABASE_URL", "SUPABASE_SECRET_KEY",
            "SUPABASE_SERVICE_ROLE_KEY", "DATABASE_CA_FILE"}  # fmt: skip
    return {name: settings[name] for name in names if name in settings and name not in ours}
