"""`sluice doctor`, layer api: each set-up breaks one thing, and that is what is found."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from local.postgres import free_port
from tests.front_door import front_door
from tests.integration.installation import OTHER_REF, REF, Breaking, Installation, SetUp, found_as, ids, setting


def answering(path: str, status: int, body: Any) -> Breaking:
    """Let the project answer so at this path, and as always elsewhere."""

    @contextlib.asynccontextmanager
    async def broken(installation: Installation) -> AsyncIterator[None]:
        async with front_door(installation.stack.api_url, {path: (status, body)}) as door:
            installation.environment["SUPABASE_URL"] = door
            yield

    return broken


def legacy_key(**claims: str) -> str:
    """Return a JWT as legacy keys are; its signature is nobody's."""

    def part(content: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'iss': 'supabase', **claims})}.c2lnbmF0dXJl"


@contextlib.asynccontextmanager
async def publishable_key(installation: Installation) -> AsyncIterator[None]:
    installation.environment["SUPABASE_SECRET_KEY"] = installation.stack.publishable_key
    yield


@contextlib.asynccontextmanager
async def nobody_there(installation: Installation) -> AsyncIterator[None]:
    installation.environment["SUPABASE_URL"] = f"http://127.0.0.1:{free_port()}"
    yield


@contextlib.asynccontextmanager
async def key_of_another_project(installation: Installation) -> AsyncIterator[None]:
    installation.behind({f"{REF}.supabase.co": installation.stack.api_url})
    installation.environment |= {
        "SUPABASE_URL": f"https://{REF}.supabase.co",
        "SUPABASE_SECRET_KEY": legacy_key(role="service_role", ref=OTHER_REF),
    }
    yield


@contextlib.asynccontextmanager
async def two_projects(installation: Installation) -> AsyncIterator[None]:
    async def resolve(_host: str, _port: int) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")  # the world outside is not there

    installation.world = replace(installation.world, resolve=resolve)
    installation.environment |= {
        "SUPABASE_URL": f"https://{REF}.supabase.co", "DATABASE_URL": installation.at(f"db.{OTHER_REF}.supabase.co")
    }  # fmt: skip
    yield


NOT_FOUND = {"code": "NOT_FOUND", "message": "Requested function was not found"}

URLS: dict[str, SetUp] = {
    "another project than the database's": (
        two_projects, {"api_url": "other_project", "database_dns": "database_host_unknown"},
        f"SUPABASE_URL is the project {REF}, and DATABASE_URL is the project {OTHER_REF}."),
    "the dashboard's address": (
        setting(SUPABASE_URL=f"https://supabase.com/dashboard/project/{REF}"), {"api_url": "api_url_invalid"},
        "it has a path"),
    "the secret key in plaintext": (
        setting(SUPABASE_URL=f"http://{REF}.supabase.co"), {"api_url": "api_url_invalid"}, "in plaintext"),
    "an address at which nobody is": (nobody_there, {"api": "api_unreachable"}, "cannot be reached (ConnectError"),
    "a web site instead of a project": (
        answering("/auth/v1/health", 200, "<html>Welcome</html>"), {"api": "api_not_supabase"},
        "is not a Supabase project"),
    "a project that is paused": (
        answering("/auth/v1/", 540, {"message": "Project paused"}), {"api": "project_paused"}, "Restore it"),
}  # fmt: skip
KEYS: dict[str, SetUp] = {
    "the publishable key": (publishable_key, {"secret_key_kind": "secret_key_is_public"}, "sb_secret_"),
    "the legacy anon key": (
        setting(SUPABASE_SECRET_KEY=legacy_key(role="anon", ref=REF)), {"secret_key_kind": "secret_key_is_public"},
        "holds the publishable (or anon) key"),
    "a legacy key of another project": (
        key_of_another_project, {"secret_key_kind": "secret_key_other_project"}, f"a key of the project {OTHER_REF}"),
    "a token of a user": (
        setting(SUPABASE_SECRET_KEY=legacy_key(role="authenticated")), {"secret_key_kind": "secret_key_unknown"},
        "is neither a secret key"),
    "a revoked key": (
        setting(SUPABASE_SECRET_KEY="sb_secret_revokedrevokedrevokedrevoked"), {"secret_key": "secret_key_refused"},
        "HTTP 401"),
}  # fmt: skip
SERVICES: dict[str, SetUp] = {
    "Auth that fails": (
        # Without a key it is asked only whether it is there.
        answering("/auth/v1/health", 503, {"msg": "unavailable"}), {"auth": "auth_failed"}, "HTTP 503"),
    "Storage that cannot be listed": (
        answering("/storage/v1/object/list", 500, {"statusCode": "500", "error": "internal"}),
        {"storage": "storage_failed"}, "listing it: HTTP 500"),
    "Storage of another project": (
        answering("/storage/v1/object/authenticated", 400, {"statusCode": "404", "error": "Bucket not found"}),
        {"storage": "storage_bucket_missing"}, "they are not the same project"),
    "objects that cannot be read": (
        answering("/storage/v1/object/authenticated", 403, {"statusCode": "403", "error": "Unauthorized"}),
        {"storage": "storage_failed"}, "reading from it: HTTP 403"),
    "Realtime behind a proxy that refuses WebSockets": (
        answering("/realtime/v1/websocket", 403, {"message": "no upgrade"}), {"realtime": "realtime_failed"},
        "Realtime cannot be joined"),
    "the internal schema exposed": (
        answering("/rest/v1/queues", 200, []), {"api_schemas": "ingest_exposed"}, "exposes the schema ingest"),
    "a Data API that is switched off": (
        answering("/rest/v1/", 503, {"code": "PGRST002"}), {"api_schemas": "rest_failed"}, "HTTP 503"),
    "a function that is not deployed": (
        answering("/functions/v1/search", 404, NOT_FOUND), {"search_function": "function_missing"},
        "supabase functions deploy search"),
    "a function behind verify_jwt": (
        answering("/functions/v1/search", 401, {"code": 401, "message": "Missing authorization header"}),
        {"search_function": "function_verifies_jwt"}, "verify_jwt"),
    "a function that does not start": (
        answering("/functions/v1/search", 503, {"code": "BOOT_ERROR"}), {"search_function": "function_failed"},
        "HTTP 503"),
    "a health function that is not deployed": (
        answering("/functions/v1/health", 404, NOT_FOUND), {"health_function": "function_missing"},
        "supabase functions deploy health"),
}  # fmt: skip


@pytest.mark.parametrize("set_up", ids(URLS | KEYS | SERVICES))
async def test_the_doctor_finds_what_is_broken_and_nothing_else(installation: Installation, set_up: SetUp) -> None:
    await found_as(installation, set_up)
