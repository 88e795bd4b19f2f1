"""The clients by which people upload, behind one set of names: supabase-js, the Python client, and tus-js-client."""

from __future__ import annotations

from typing import Any, Protocol

from supabase import AsyncClient

from tests.integration.supabase_js import Caller, raw
from tests.integration.tus_js import RESUMABLE, TusJs

MARKDOWN = "text/markdown"


class Uploads(Protocol):
    """Every client can bring bytes in, as itself and by a signed URL's token."""

    async def upload(self, name: str, content: bytes, *, upsert: bool = False) -> object:
        """Bring a file in."""
        ...

    async def upload_signed(self, name: str, content: bytes) -> object:
        """Ask for a signed URL, and bring a file in by it."""
        ...


class Js:
    """supabase-js."""

    def __init__(self, caller: Caller, bucket: str, folder: str) -> None:
        self._caller = caller
        self._bucket = bucket
        self._folder = folder

    async def upload(self, name: str, content: bytes, *, upsert: bool = False) -> object:
        options = {"upsert": upsert, "contentType": MARKDOWN}
        return await self._call("upload", self._at(name), raw(content), options)

    async def update(self, name: str, content: bytes) -> object:
        return await self._call("update", self._at(name), raw(content), {"contentType": MARKDOWN})

    async def upload_signed(self, name: str, content: bytes) -> object:
        signed = await self._call("createSignedUploadUrl", self._at(name))
        options = {"contentType": MARKDOWN}
        return await self._call("uploadToSignedUrl", self._at(name), signed["token"], raw(content), options)

    async def copy(self, name: str, to: str) -> object:
        return await self._call("copy", self._at(name), self._at(to))

    async def move(self, name: str, to: str) -> object:
        return await self._call("move", self._at(name), self._at(to))

    async def remove(self, *names: str) -> object:
        return await self._call("remove", [self._at(name) for name in names])

    async def token(self, name: str) -> str:
        """Return the token of a signed upload URL."""
        return str((await self._call("createSignedUploadUrl", self._at(name)))["token"])

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"

    async def _call(self, method: str, *arguments: Any) -> Any:
        return await self._caller.storage(self._bucket, method, *arguments)


class Python:
    """The Python package `supabase`."""

    def __init__(self, client: AsyncClient, bucket: str, folder: str) -> None:
        self._client = client
        self._bucket = bucket
        self._folder = folder

    async def upload(self, name: str, content: bytes, *, upsert: bool = False) -> object:
        options: Any = {"content-type": MARKDOWN, "upsert": "true" if upsert else "false"}
        return await self._files.upload(self._at(name), content, options)

    async def update(self, name: str, content: bytes) -> object:
        return await self._files.update(self._at(name), content, {"content-type": MARKDOWN})

    async def upload_signed(self, name: str, content: bytes) -> object:
        signed = await self._files.create_signed_upload_url(self._at(name))
        return await self._files.upload_to_signed_url(
            self._at(name), signed["token"], content, {"content-type": MARKDOWN}
        )

    async def copy(self, name: str, to: str) -> object:
        return await self._files.copy(self._at(name), self._at(to))

    async def move(self, name: str, to: str) -> object:
        return await self._files.move(self._at(name), self._at(to))

    async def remove(self, *names: str) -> object:
        return await self._files.remove([self._at(name) for name in names])

    @property
    def _files(self) -> Any:
        return self._client.storage.from_(self._bucket)

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"


class Tus:
    """tus-js-client, which brings bytes in and nothing else; a token comes from supabase-js."""

    def __init__(self, tus: TusJs, headers: dict[str, str], tokens: Js, bucket: str, folder: str) -> None:
        self._tus = tus
        self._headers = headers
        self._tokens = tokens
        self._bucket = bucket
        self._folder = folder

    async def upload(self, name: str, content: bytes, *, upsert: bool = False) -> object:
        return await self._tus.upload(self._headers, self._bucket, f"{self._folder}/{name}", content, upsert=upsert)

    async def upload_signed(self, name: str, content: bytes) -> object:
        headers = {"apikey": self._headers["apikey"], "x-signature": await self._tokens.token(name)}
        path = f"{RESUMABLE}/sign"
        return await self._tus.upload(headers, self._bucket, f"{self._folder}/{name}", content, path=path)
