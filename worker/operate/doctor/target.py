"""What a database URL says, before anybody connects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from worker.db.connect import is_loopback

_REF = r"[a-z]{20}"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a database URL leads; the password is left out."""

    user: str
    host: str
    port: int
    database: str
    sslmode: str | None
    ca_file: str | None

    @classmethod
    def of(cls, url: str) -> Target:
        """Read a URL; raises ValueError with what is wrong, which never quotes the URL."""
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
        except ValueError:
            raise ValueError("it cannot be read as a URL; special characters in the password must be encoded") from None
        if parts.scheme not in ("postgres", "postgresql"):
            raise ValueError("it must begin with postgresql://")
        if not parts.hostname:
            raise ValueError("it names no host")
        if not parts.username:
            raise ValueError("it names no user")
        query = parse_qs(parts.query)
        return cls(
            unquote(parts.username), parts.hostname, port, unquote(parts.path.lstrip("/")) or unquote(parts.username),
            query.get("sslmode", [None])[-1], query.get("sslrootcert", [None])[-1],
        )  # fmt: skip

    @property
    def loopback(self) -> bool:
        """Whether it leads to this machine, where plaintext harms nobody."""
        return is_loopback(self.host)

    @property
    def pooled(self) -> bool:
        """Whether it leads to Supabase's shared pooler."""
        return self.host.endswith(".pooler.supabase.com")

    @property
    def project(self) -> str | None:
        """The ref of the Supabase project, where host or user tell it."""
        if found := re.fullmatch(rf"db\.({_REF})\.supabase\.(?:co|net|in)", self.host):
            return found[1]
        if self.pooled and (found := re.fullmatch(rf"[^.]+\.({_REF})", self.user)):
            return found[1]
        return None


def project_of(api_url: str) -> str | None:
    """Return the ref of the Supabase project whose API this is, or None for a domain of its own."""
    found = re.fullmatch(rf"({_REF})\.supabase\.(?:co|net|in)", urlsplit(api_url).hostname or "")
    return found[1] if found else None
