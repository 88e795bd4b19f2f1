"""A person who uses the target as an app does: Auth, Storage, REST and functions through the real client.

What the vendor's packages raise is translated here: Refused for an answer that says no, the tree of errors.py
for none.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from supabase import (
    AsyncClient,
    AsyncClientOptions,
    AsyncSupabaseException,
    AuthError,
    FunctionsError,
    PostgrestAPIError,
    StorageException,
    acreate_client,
)

from worker.errors import Misconfigured, Unavailable

_SECONDS = 60.0
_ROWS = 1000
# The sign-up of a project that confirms addresses would send a message: this domain receives none.
_DOMAIN = "example.com"


class Refused(Exception):
    """The target said no; `status` and `code` are its own, 0 where it gave none."""

    def __init__(self, what: str, status: int, code: str, message: str) -> None:
        super().__init__(f"{what} was refused: {status} {code} {message}"[:300])
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Target:
    """Where a run goes: the project's URL, the key of apps and the key of servers."""

    url: str
    publishable_key: str
    secret_key: str


class Person:
    """A signed-up user; `id` is also their own tenant and the name of their folder. Made by `signed_up`."""

    def __init__(self, client: AsyncClient, target: Target, email: str, password: str) -> None:
        self.client = client
        self.id = ""
        self.subjects: list[str] = []
        """The subject of each token that Auth gave at a sign-in, as the token itself says."""
        self._target = target
        self._email = email
        self._password = password

    async def sign_in(self) -> None:
        """Sign in anew; the token's subject is added to `subjects`."""
        with translated("signing in"):
            answer = await self.client.auth.sign_in_with_password({"email": self._email, "password": self._password})
        assert answer.session is not None
        self.subjects.append(subject_of(answer.session.access_token))

    async def known_as(self) -> str:
        """Ask Auth whose token this is."""
        with translated("asking for the user"):
            answer = await self.client.auth.get_user()
        return str(answer.user.id) if answer is not None else ""

    async def upload(self, bucket: str, name: str, content: bytes, mime_type: str, *, upsert: bool = False) -> None:
        """Store an object; `name` is whole, with the folder."""
        options: Any = {"content-type": mime_type, "upsert": "true" if upsert else "false"}
        with translated("uploading"):
            await self.client.storage.from_(bucket).upload(name, content, options)

    async def download(self, bucket: str, name: str) -> bytes:
        """Read an object whole."""
        with translated("downloading"):
            return await self.client.storage.from_(bucket).download(name)

    async def move(self, bucket: str, name: str, to: str) -> None:
        """Rename an object."""
        with translated("moving"):
            await self.client.storage.from_(bucket).move(name, to)

    async def remove(self, bucket: str, names: list[str]) -> int:
        """Remove objects and return how many Storage says it removed."""
        with translated("removing"):
            return len(await self.client.storage.from_(bucket).remove(names))

    async def listed(self, bucket: str, folder: str) -> list[str]:
        """Return the names in a folder."""
        with translated("listing"):
            return [str(entry["name"]) for entry in await self.client.storage.from_(bucket).list(folder)]

    async def sign(self, bucket: str, name: str) -> str:
        """Return a signed URL of an object."""
        with translated("signing a URL"):
            signed = await self.client.storage.from_(bucket).create_signed_url(name, 60)
        return str(signed["signedURL"])

    async def rows(self, table: str, **equal: str) -> list[dict[str, Any]]:
        """Read what of a table or view this person sees, 1,000 rows at most."""
        with translated(f"reading {table}"):
            query = self.client.table(table).select("*")
            for column, value in equal.items():
                query = query.eq(column, value)
            answer = await query.limit(_ROWS).execute()
        found: Any = answer.data
        return list(found)

    async def search(self, query: str, count: int) -> list[dict[str, Any]]:
        """Ask the edge function `search`, which makes the vector itself."""
        with translated("searching"):
            answer: Any = await self.client.functions.invoke(
                "search", {"body": {"query": query, "match_count": count}, "responseType": "json"}
            )
        return list(answer["matches"])

    async def search_with(self, query: str, vector: list[float], count: int) -> list[dict[str, Any]]:
        """Ask the database's `search` with a vector of ours."""
        given = {"query": query, "query_embedding": vector, "match_count": count}
        with translated("searching"):
            answer = await self.client.rpc("search", given).execute()
        found: Any = answer.data
        return list(found)


@contextlib.asynccontextmanager
async def signed_up(target: Target, run_id: str, who: str, made: list[str]) -> AsyncIterator[Person]:
    """Sign a user up for this run, in a client of their own; their id is added to `made` as soon as there is one.

    Where the project confirms addresses, the secret key confirms this one. The address begins with sluice-verify-,
    by which clean-up knows what it may remove.
    """
    email, password = f"sluice-verify-{run_id}-{who}@{_DOMAIN}", secrets.token_urlsafe(24)
    async with _client(target, target.publishable_key) as client:
        person = Person(client, target, email, password)
        try:
            with translated("signing up"):
                answer = await client.auth.sign_up({"email": email, "password": password})
            person.id = str(answer.user.id) if answer.user is not None else ""
            session = answer.session
        except Refused:
            # Sign-ups may be off, limited, or refuse the domain: servers may make users all the same.
            person.id, session = await _made_by_server(target, email, password), None
        if person.id:
            made.append(person.id)
        if session is not None:
            person.subjects.append(subject_of(session.access_token))
        else:
            await _confirm(target, person.id)
            await person.sign_in()
        yield person


@contextlib.asynccontextmanager
async def nobody(target: Target) -> AsyncIterator[Person]:
    """Give a client that holds the publishable key and no user."""
    async with _client(target, target.publishable_key) as client:
        yield Person(client, target, "", "")


async def remove_user(target: Target, user_id: str) -> None:
    """Remove a user by Auth's administration; raises Refused where there is none."""
    async with _client(target, target.secret_key) as client:
        with translated("removing a user"):
            await client.auth.admin.delete_user(user_id)


async def _made_by_server(target: Target, email: str, password: str) -> str:
    async with _client(target, target.secret_key) as client:
        with translated("making a user"):
            made = await client.auth.admin.create_user({"email": email, "password": password, "email_confirm": True})
    return str(made.user.id)


async def _confirm(target: Target, user_id: str) -> None:
    async with _client(target, target.secret_key) as client:
        with translated("confirming a user"):
            await client.auth.admin.update_user_by_id(user_id, {"email_confirm": True})


@contextlib.asynccontextmanager
async def _client(target: Target, key: str) -> AsyncIterator[AsyncClient]:
    async with httpx.AsyncClient(timeout=_SECONDS) as http:
        options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=http)
        try:
            client = await acreate_client(target.url, key, options)
        except AsyncSupabaseException as exc:
            raise Misconfigured(
                "target_settings",
                "The client refuses SUPABASE_URL or one of the keys. Check SUPABASE_URL, SUPABASE_PUBLISHABLE_KEY and "
                "SUPABASE_SECRET_KEY.",
                detail=str(exc),
            ) from exc
        yield client


def subject_of(token: str) -> str:
    """Return the subject that a token names; not a check of its signature, which the target makes."""
    payload = token.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn what the client raises into Refused, or Unavailable where the target did not answer or broke down."""
    try:
        yield
    except (AuthError, StorageException, PostgrestAPIError, FunctionsError) as exc:
        status, code = _status(exc), str(getattr(exc, "code", "") or "")
        if status >= 500 and not isinstance(exc, FunctionsError):
            raise _unreachable(what, f"HTTP {status} {code}") from exc
        raise Refused(what, status, code, str(getattr(exc, "message", ""))) from exc
    except (httpx.HTTPError, ValueError) as exc:
        raise _unreachable(what, type(exc).__name__) from exc


def _status(exc: Exception) -> int:
    for name in ("status", "status_code"):
        text = str(getattr(exc, name, ""))
        if text.isdigit():
            return int(text)
    return 0


def _unreachable(what: str, detail: str) -> Unavailable:
    return Unavailable(
        "target_unreachable",
        f"The target did not answer while {what}. Check that SUPABASE_URL is right and the project is up, then run "
        "it again.",
        detail=detail,
    )
