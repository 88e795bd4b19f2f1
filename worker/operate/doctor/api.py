"""The project's API: is it the right project, does it take our key, and do its services answer."""

from __future__ import annotations

import base64
import json
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from worker.db.connect import is_loopback
from worker.errors import IngestError
from worker.operate.doctor.check import Check, NotSet, Problem
from worker.operate.doctor.examination import Examination, Unanswered
from worker.operate.doctor.target import Target, project_of
from worker.queue.join import join_and_leave

if TYPE_CHECKING:
    import httpx

URL_INVALID = Problem(
    "api_url_invalid",
    "SUPABASE_URL cannot be used: {why}.",
    "Write it as https://<project ref>.supabase.co, with nothing after it.",
)
OTHER_PROJECT = Problem(
    "other_project",
    "SUPABASE_URL is the project {api}, and DATABASE_URL is the project {database}.",
    "Take both from the same project's dashboard.",
)
UNREACHABLE = Problem(
    "api_unreachable",
    "{url} cannot be reached ({why}).",
    "Correct SUPABASE_URL, or see what keeps this machine from it: name, proxy, firewall, certificate.",
)
NOT_SUPABASE = Problem(
    "api_not_supabase",
    "What answers at {url} is not a Supabase project (HTTP {status}).",
    "Correct SUPABASE_URL: https://<project ref>.supabase.co, not the dashboard's address or the website's.",
)
PROJECT_PAUSED = Problem(
    "project_paused",
    "The project at {url} is paused.",
    "Restore it in the dashboard; it takes some minutes.",
)
KEY_PUBLIC = Problem(
    "secret_key_is_public",
    "SUPABASE_SECRET_KEY holds the publishable (or anon) key, with which the worker may read nothing.",
    "Set it to a secret key of the project (API keys, sb_secret_…), and keep that one from clients.",
)
KEY_OTHER_PROJECT = Problem(
    "secret_key_other_project",
    "SUPABASE_SECRET_KEY is a key of the project {theirs}, and SUPABASE_URL is the project {ours}.",
    "Take both from the same project's dashboard.",
)
KEY_UNKNOWN = Problem(
    "secret_key_unknown",
    "SUPABASE_SECRET_KEY is neither a secret key (sb_secret_…) nor a project's legacy service_role key.",
    "Copy the secret key whole from the dashboard (API keys).",
)
KEY_REFUSED = Problem(
    "secret_key_refused",
    "The project refuses SUPABASE_SECRET_KEY (HTTP {status}): it was revoked, or is another project's.",
    "Make a new secret key in the dashboard (API keys) and set it for all workers.",
)
AUTH_FAILED = Problem(
    "auth_failed",
    "Auth does not answer as it should (HTTP {status}), so nobody can sign in.",
    "See the project's status and Auth's logs in the dashboard.",
)
STORAGE_FAILED = Problem(
    "storage_failed",
    "Storage does not let the worker read the bucket {bucket} ({why}).",
    "See the project's status and Storage's logs; the secret key must be allowed to read Storage.",
)
STORAGE_OTHER = Problem(
    "storage_bucket_missing",
    "Storage at SUPABASE_URL has no bucket {bucket}, though the database has: they are not the same project.",
    "Take SUPABASE_URL and DATABASE_URL from the same project's dashboard.",
)
REALTIME_FAILED = Problem(
    "realtime_failed",
    "Realtime cannot be joined. {why}",
    "Enable Realtime for the project, with private channels; behind a proxy, let it pass WebSockets.",
)
INGEST_EXPOSED = Problem(
    "ingest_exposed",
    "The Data API exposes the schema ingest, which is internal.",
    "Take ingest out of the exposed schemas (API settings).",
)
REST_FAILED = Problem(
    "rest_failed",
    "The Data API does not answer as it should (HTTP {status}).",
    "See the project's status, and that the Data API is enabled with the schema public.",
)
FUNCTION_MISSING = Problem(
    "function_missing",
    "The edge function {name} is not deployed.",
    "Deploy it: scripts/deploy, or supabase functions deploy {name}",
)
FUNCTION_VERIFIES = Problem(
    "function_verifies_jwt",
    "The platform checks JWTs before the edge function {name} (verify_jwt), which refuses the new kind of keys.",
    "Deploy it with supabase/config.toml, which switches that off; the function checks its callers itself.",
)
FUNCTION_FAILED = Problem(
    "function_failed",
    "The edge function {name} does not answer as it should (HTTP {status}).",
    "See its logs in the dashboard: usually one of its secrets is missing (supabase secrets list).",
)


async def url(examination: Examination) -> str:
    """Read SUPABASE_URL, and compare its project with the database's."""
    given = examination.api_url
    if not given:
        raise NotSet("SUPABASE_URL is not set.")
    try:
        parts = urlsplit(given)
    except ValueError as exc:
        raise URL_INVALID.found(why="it cannot be read as a URL") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise URL_INVALID.found(why="it must begin with https:// and name a host")
    if parts.path or parts.query:
        raise URL_INVALID.found(why="it has a path; only the host belongs there")
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise URL_INVALID.found(why="it begins with http://, which sends the secret key in plaintext")
    ours = project_of(given)
    try:
        theirs = Target.of(examination.database_url).project
    except ValueError:
        theirs = None
    if ours and theirs and ours != theirs:
        raise OTHER_PROJECT.found(api=ours, database=theirs)
    return f"SUPABASE_URL leads to {parts.hostname}."


async def reachable(examination: Examination) -> str:
    """Ask Auth for its health without a key: every project answers that, if only with a refusal."""
    answer = await _get(examination, "/auth/v1/health", key=False)
    if answer.status_code == 540:
        raise PROJECT_PAUSED.found(url=examination.api_url)
    if answer.status_code == 404 or not _is_json(answer):
        raise NOT_SUPABASE.found(url=examination.api_url, status=answer.status_code)
    return "The project's API answers."


async def kind(examination: Examination) -> str:
    """Say what kind of key was given; nobody is asked."""
    key = examination.secret_key
    if not key:
        raise NotSet("SUPABASE_SECRET_KEY is not set.")
    if key.startswith("sb_publishable_"):
        raise KEY_PUBLIC.found()
    if key.startswith("sb_secret_"):
        return "It is a secret key."
    claims = _claims(key)
    if claims.get("role") == "anon":
        raise KEY_PUBLIC.found()
    if claims.get("role") != "service_role":
        raise KEY_UNKNOWN.found()
    ours, theirs = project_of(examination.api_url), claims.get("ref")
    if ours and isinstance(theirs, str) and theirs != ours:
        raise KEY_OTHER_PROJECT.found(ours=ours, theirs=theirs)
    return "It is a legacy service_role key."


async def accepted(examination: Examination) -> str:
    """Show the key to the gateway."""
    answer = await _get(examination, "/auth/v1/settings")
    if answer.status_code in (401, 403):
        raise KEY_REFUSED.found(status=answer.status_code)
    return "The project takes the secret key."


async def auth(examination: Examination) -> str:
    """Ask Auth how it is."""
    answer = await _get(examination, "/auth/v1/health")
    if answer.status_code != 200 or "name" not in _body(answer):
        raise AUTH_FAILED.found(status=answer.status_code)
    return "Auth answers."


async def storage(examination: Examination) -> str:
    """List each bucket, and read a range of an object that nobody has, the way the worker reads."""
    for bucket in examination.buckets:
        answer = await _ask(
            examination, "POST", f"/storage/v1/object/list/{quote(bucket)}", json={"prefix": "", "limit": 1}
        )
        if answer.status_code != 200:
            raise STORAGE_FAILED.found(bucket=bucket, why=f"listing it: HTTP {answer.status_code}")
        path = f"/storage/v1/object/authenticated/{quote(bucket)}/sluice-doctor/{secrets.token_hex(16)}"
        answer = await _ask(examination, "GET", path, headers={"range": "bytes=0-0"})
        body = _body(answer)
        if str(body.get("statusCode", answer.status_code)) != "404":
            raise STORAGE_FAILED.found(bucket=bucket, why=f"reading from it: HTTP {answer.status_code}")
        # Storage says the same of a missing bucket, with another word.
        if "bucket" in f"{body.get('error')} {body.get('message')} {body.get('code')}".lower():
            raise STORAGE_OTHER.found(bucket=bucket)
    return f"Storage lets the worker read {', '.join(examination.buckets)}."


async def realtime(examination: Examination) -> str:
    """Join the channel that wakes workers, and leave it again."""
    try:
        await join_and_leave(examination.api_url, examination.secret_key)
    except IngestError as exc:
        raise REALTIME_FAILED.found(why=exc.public_message) from exc
    return "Realtime lets the worker join its channel."


async def schemas(examination: Examination) -> str:
    """Ask the Data API for the internal schema, which it must not know."""
    answer = await _ask(examination, "GET", "/rest/v1/queues?limit=0", headers={"accept-profile": "ingest"})
    if answer.status_code == 406:
        return "The schema ingest is not exposed."
    if answer.status_code >= 500 or not _is_json(answer):
        raise REST_FAILED.found(status=answer.status_code)
    raise INGEST_EXPOSED.found()


async def search_function(examination: Examination) -> str:
    """Ask the function search for what it refuses in its own words."""
    answer = await _ask(examination, "GET", "/functions/v1/search", key=False)
    _judge("search", answer)
    if answer.status_code != 405 or _body(answer).get("code") != "method_not_allowed":
        raise FUNCTION_FAILED.found(name="search", status=answer.status_code)
    return "The function search is deployed."


async def health_function(examination: Examination) -> str:
    """Ask the function health; what it says of the services is its own affair."""
    answer = await _ask(examination, "GET", "/functions/v1/health", key=False)
    _judge("health", answer)
    if answer.status_code not in (200, 503) or "status" not in _body(answer):
        raise FUNCTION_FAILED.found(name="health", status=answer.status_code)
    return f"The function health is deployed, and says: {str(_body(answer)['status'])[:40]}."


def _judge(name: str, answer: httpx.Response) -> None:
    if answer.status_code == 404:
        raise FUNCTION_MISSING.found(name=name)
    if answer.status_code == 401:
        raise FUNCTION_VERIFIES.found(name=name)


async def _get(examination: Examination, path: str, *, key: bool = True) -> httpx.Response:
    return await _ask(examination, "GET", path, key=key)


async def _ask(examination: Examination, method: str, path: str, *, key: bool = True, **more: Any) -> httpx.Response:
    headers = dict(more.pop("headers", {}))
    if key:
        headers |= {"apikey": examination.secret_key, "authorization": f"Bearer {examination.secret_key}"}
    try:
        return await examination.request(method, examination.api_url + path, headers=headers, **more)
    except Unanswered as exc:
        raise UNREACHABLE.found(url=examination.api_url, why=exc) from exc


def _is_json(answer: httpx.Response) -> bool:
    return "json" in answer.headers.get("content-type", "")


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _claims(key: str) -> dict[str, Any]:
    """Return what a JWT says, unverified: it is only asked what it claims to be."""
    parts = key.split(".")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


_ASKED = ("api",)
_KNOWN = ("secret_key",)

CHECKS = (
    Check("api_url", "api", "SUPABASE_URL is the database's project", url, (URL_INVALID, OTHER_PROJECT)),
    Check(
        "api", "api", "The project's API answers", reachable, (UNREACHABLE, NOT_SUPABASE, PROJECT_PAUSED),
        needs=("api_url",), seconds=8,
    ),
    Check(
        "secret_key_kind", "api", "SUPABASE_SECRET_KEY is a secret key of this project", kind,
        (KEY_PUBLIC, KEY_OTHER_PROJECT, KEY_UNKNOWN), unless=("api_url",),
    ),
    Check(
        "secret_key", "api", "The project takes the secret key", accepted, (KEY_REFUSED, UNREACHABLE),
        needs=("api", "secret_key_kind"), seconds=8,
    ),
    Check("auth", "api", "Auth answers", auth, (AUTH_FAILED, UNREACHABLE), needs=_KNOWN, seconds=8),
    Check(
        "storage", "api", "Storage lets the worker read the buckets", storage,
        (STORAGE_FAILED, STORAGE_OTHER, UNREACHABLE), needs=_KNOWN, unless=("bucket",), seconds=15,
    ),
    Check(
        "realtime", "api", "Realtime lets the worker join its channel", realtime, (REALTIME_FAILED,),
        needs=_KNOWN, seconds=10,
    ),
    Check(
        "api_schemas", "api", "The Data API hides the schema ingest", schemas,
        (INGEST_EXPOSED, REST_FAILED, UNREACHABLE), needs=_KNOWN, seconds=8,
    ),
    Check(
        "search_function", "api", "The edge function search is deployed", search_function,
        (FUNCTION_MISSING, FUNCTION_VERIFIES, FUNCTION_FAILED, UNREACHABLE), needs=_ASKED, seconds=8,
    ),
    Check(
        "health_function", "api", "The edge function health is deployed", health_function,
        (FUNCTION_MISSING, FUNCTION_VERIFIES, FUNCTION_FAILED, UNREACHABLE), needs=_ASKED, seconds=8,
    ),
)  # fmt: skip
