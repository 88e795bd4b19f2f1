"""The address at which a remote parser says that it has finished, with a secret of which the database has the digest.

    https://<project>/functions/v1/parse-webhook?parse=<id>&token=<43 characters>

A hint only: what it says is asked for, and where it is lost the timer asks.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from worker.db.pool import Database
from worker.model import Claim, ParseId


@dataclass(frozen=True, slots=True)
class Webhook:
    """What a parser is given; both are secrets. `signing_secret` is for providers that sign (LlamaParse v2)."""

    url: str = field(repr=False)
    signing_secret: str | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Webhooks:
    """Makes webhooks at the edge function's address, `url`, of 120 characters at most."""

    db: Database
    url: str
    signing_secret: str | None = field(repr=False, default=None)

    async def expect(self, claim: Claim, parse_id: ParseId) -> Webhook:
        """Return the webhook of this submit, of less than 200 characters; an earlier one for the parse is void.

        Call it between begin_parse and the submit, with no transaction open. Raises StaleClaim when the parse is not
        this claim's to submit.
        """
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).digest()
        await self.db.fetchval("expect_webhook", claim.job_id, claim.number, parse_id, digest)
        return Webhook(f"{self.url}?parse={parse_id}&token={token}", self.signing_secret)
