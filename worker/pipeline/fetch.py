"""Fetch: stream the object to a temporary file; size, SHA-256 and sniffed type."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass
from uuid import UUID

from worker.db.pool import Database
from worker.errors import Misconfigured, Moved, Rejected, Superseded, Transient, Unavailable
from worker.model import Claim, Source
from worker.pipeline.filetype import sniff

if TYPE_CHECKING:
    import aiohttp
    import httpx
    from supabase import AsyncClient

_SECONDS = 30.0
"""Longest silence, and longest wait for a free connection."""
_CONNECT_SECONDS = 10.0


class NotFound(Exception):
    """Storage has no object of this name now."""


class ObjectStore:
    """Supabase Storage, read with the secret key.

    Objects are streamed: the client's own `download` holds the whole file in memory, 2.3 times over
    (507 MB for 200 MB). Nor is a URL signed first, which would be a second request a file. They come by
    aiohttp: a small file takes it 0.13 ms of the processor, and httpx 0.6 at least.
    """

    def __init__(self, url: str, secret_key: str) -> None:
        """Nothing is sent yet, and no connection made."""
        self._url = url
        self._key = secret_key
        self._session: aiohttp.ClientSession | None = None
        self._http: httpx.AsyncClient | None = None
        self._made: AsyncClient | None = None
        self._objects = f"{url.rstrip('/')}/storage/v1/object/authenticated"
        # Both headers: the gateway takes a key that is no JWT as a bearer only where it is the apikey too.
        self._headers = {"apikey": secret_key, "authorization": f"Bearer {secret_key}"}

    async def _client(self) -> AsyncClient:
        # Imported here: the package takes 0.15 s and 30 MB, and a worker needs it for reconcile only.
        import httpx
        from supabase import AsyncClientOptions, acreate_client

        if self._made is None:
            self._http = httpx.AsyncClient(timeout=httpx.Timeout(_SECONDS, connect=_CONNECT_SECONDS))
            options = AsyncClientOptions(auto_refresh_token=False, persist_session=False, httpx_client=self._http)
            self._made = await acreate_client(self._url, self._key, options)
        return self._made

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
        if self._http is not None:
            await self._http.aclose()

    async def download(self, bucket: str, name: str, path: Path, *, max_bytes: int) -> tuple[int, bytes]:
        """Stream an object into `path` and return its size in bytes and its SHA-256.

        Raises NotFound, Rejected beyond max_bytes whatever length was declared and for a name that no URL
        can hold, Misconfigured when our key is refused, Unavailable while Storage does not answer.
        """
        if not {".", ".."}.isdisjoint(name.split("/")):
            # Clients and servers resolve such segments, encoded or not: our key would be given another object.
            raise Rejected(
                "name_unreadable",
                "A folder in the file's name is '.' or '..', and Storage gives no such file out. Rename it.",
            )
        import aiohttp  # here: a command that only says its options would wait 0.1 s for it

        try:
            return await self._stream(f"{self._objects}/{quote(bucket)}/{quote(name)}", path, max_bytes)
        except (aiohttp.ClientError, TimeoutError) as exc:
            raise _unreachable(type(exc).__name__) from exc

    async def lacks(self, object_id: UUID, bucket: str, name: str) -> bool:
        """Say whether Storage itself says that this object is not there, or that the name is another's now.

        Any other answer, and none, is no: a missing bucket, a refused key and a proxy's 404 too.
        """
        import httpx
        from supabase import StorageException

        try:
            # The package takes a name as if it were quoted: of `100%25` it would ask for `100%`.
            info = await (await self._client()).storage.from_(bucket).info(quote(name))
        except StorageException as exc:
            said = (str(getattr(exc, "status", "")), getattr(exc, "code", ""))
            return said == ("404", "not_found")
        except (httpx.HTTPError, ValueError):
            return False
        found = info.get("id") if isinstance(info, dict) else None
        return isinstance(found, str) and found != str(object_id)

    async def remove(self, bucket: str, names: list[str]) -> int:
        """Remove objects, 1,000 at most; return how many Storage says it removed.

        Raises Misconfigured when our key is refused, Unavailable for every other failure.
        """
        import httpx
        from supabase import StorageException

        try:
            return len(await (await self._client()).storage.from_(bucket).remove(names))
        except StorageException as exc:
            status = str(getattr(exc, "status", ""))
            body = json.dumps({"statusCode": status, "error": getattr(exc, "code", "")}).encode()
            raise _refused(0, body) if status in ("401", "403") else _unreachable(f"remove: {status}") from exc
        except (httpx.HTTPError, ValueError) as exc:
            raise _unreachable(f"remove: {type(exc).__name__}") from exc

    async def _stream(self, url: str, path: Path, max_bytes: int) -> tuple[int, bytes]:
        from yarl import URL

        if self._session is None:
            self._session = _session(self._url)
        digest, size = hashlib.sha256(), 0
        # Quoted as it is: read as a person's writing, `%2e%2e` and `%25` would become other names.
        async with self._session.get(URL(url, encoded=True), headers=self._headers, allow_redirects=False) as response:
            if response.status != 200:
                raise _refused(response.status, await response.read())
            # Plain writes: a page cache write of 64 KiB takes microseconds, a thread's hop more.
            with path.open("wb") as file:
                async for block in response.content.iter_any():
                    size += len(block)
                    if size > max_bytes:
                        raise _too_large(size, max_bytes)
                    digest.update(block)
                    file.write(block)
            declared = response.headers.get("content-length")
            if declared is not None and "content-encoding" not in response.headers and int(declared) != size:
                raise _unreachable(f"{size} of {declared} bytes arrived")
        return size, digest.digest()


@dataclass(frozen=True, slots=True)
class Fetched:
    """The bytes of one generation, and the language of their tenant's text."""

    source: Source
    language: str


async def fetch(db: Database, store: ObjectStore, claim: Claim, path: Path, *, max_bytes: int) -> Fetched:
    """Read the document's object as it is named now into `path`.

    When it is not there the name is resolved again: an object that moved meanwhile raises Moved, so
    that the job comes back at once and uncharged.
    """
    where = await db.fetchrow("begin_fetch", claim.job_id, claim.number)
    if where is None or where["bucket_id"] is None:
        raise Superseded("object_deleted", "The file was deleted before it was read.")
    if where["size"] is not None and where["size"] > max_bytes:
        raise _too_large(where["size"], max_bytes)
    try:
        size, sha256 = await store.download(where["bucket_id"], where["name"], path, max_bytes=max_bytes)
    except NotFound as exc:
        now = await db.fetchrow("begin_fetch", claim.job_id, claim.number)
        if now is None or now["bucket_id"] is None:
            raise Superseded("object_deleted", "The file was deleted before it was read.") from exc
        if (now["bucket_id"], now["name"]) != (where["bucket_id"], where["name"]):
            raise Moved("object_moved", "The file was renamed while it was read; it is read again at once.") from exc
        raise Transient(
            "object_unreadable",
            "Storage lists the file but does not give it out. It is tried again; if it stays so, upload it again.",
        ) from exc
    mime_type = sniff(path, where["name"])
    return Fetched(Source(path, where["name"], size, sha256, mime_type), where["language"])


def _session(url: str) -> aiohttp.ClientSession:
    """Make a pool of connections to Storage, through the environment's proxy where it names one for this host.

    The environment is asked once: aiohttp would ask it and ~/.netrc, whose password is none of ours, for every file and
    in a thread.
    """
    import aiohttp
    import httpx

    parts = urlsplit(url)
    proxies = {} if proxy_bypass(parts.hostname or "") else getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    return aiohttp.ClientSession(
        # The authorities that all our other requests trust: certifi's, or those of SSL_CERT_FILE.
        connector=aiohttp.TCPConnector(ssl=httpx.create_ssl_context()),
        timeout=aiohttp.ClientTimeout(connect=_SECONDS, sock_connect=_CONNECT_SECONDS, sock_read=_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        proxy=proxy,
    )


def _too_large(size: int, max_bytes: int) -> Rejected:
    return Rejected(
        "file_too_large",
        f"The file is larger than the {max_bytes / 1_048_576:.0f} MB that one document may have. "
        "Split it and upload the parts.",
        detail=f"{size} bytes or more",
    )


def _unreachable(detail: str) -> Unavailable:
    return Unavailable(
        "storage_unreachable",
        "Storage did not answer. It is tried again by itself; nothing needs to be done.",
        detail=detail,
    )


def _refused(http_status: int, body: bytes) -> Exception:
    # A missing object and a refused key arrive as HTTP 400; the body says which.
    try:
        said = json.loads(body)
        status, code = str(said["statusCode"]), str(said.get("error", ""))
    except (ValueError, KeyError, TypeError):
        status, code = str(http_status), ""
    if status == "404":
        return NotFound(code)
    if status in ("401", "403"):
        return Misconfigured(
            "storage_refused",
            "Storage refused this worker's key. An operator must correct SUPABASE_SECRET_KEY.",
            detail=f"HTTP {http_status}: {status} {code}",
        )
    return _unreachable(f"HTTP {http_status}: {status} {code}"[:500])
