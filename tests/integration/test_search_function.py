"""The edge function search: it finds what its caller may see, counts it, and tells nobody else anything."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from local.install import MODELS
from local.stack import Stack
from local.worker_process import working
from tests.functions import said, serving
from tests.people import Person, Project
from tests.provider_double import ProviderDouble, Reply
from worker.operate.embeddings_server import listening
from worker.pipeline.embed.local import LocalEmbedder

ORIGIN = "https://app.example.com"
EMBEDDINGS_KEY = "key-of-the-embedding-server"
TEXT = b"# Harbour\n\nThe tide gauge stands at the eastern quay and is read every morning.\n"


@dataclass
class Function:
    """The function beside the stack, with an embedding server behind it."""

    url: str
    stack: Stack

    async def ask(self, person: Person | None, body: Any, **headers: str) -> httpx.Response:
        token = None if person is None else (await person.client.auth.get_session()).access_token  # type: ignore[union-attr]
        given = {"apikey": self.stack.publishable_key} | ({"authorization": f"Bearer {token}"} if token else {})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with httpx.AsyncClient(timeout=60) as client:
            return await client.post(self.url, content=content, headers=given | headers)


@pytest.fixture(scope="module")
async def function(stack: Stack) -> AsyncIterator[Function]:
    embedder = LocalEmbedder(MODELS)
    async with (
        listening(embedder, key=EMBEDDINGS_KEY) as port,
        serving(
            "search",
            SUPABASE_URL=stack.api_url,
            SUPABASE_PUBLISHABLE_KEYS=json.dumps({"default": stack.publishable_key}),
            SUPABASE_SECRET_KEYS=json.dumps({"default": stack.secret_key}),
            SLUICE_EMBEDDINGS_URL=f"http://127.0.0.1:{port}/v1",
            SLUICE_EMBEDDINGS_KEY=EMBEDDINGS_KEY,
            SLUICE_CORS_ORIGINS=f"{ORIGIN} https://other.example.com",
        ) as (url, _),
    ):
        yield Function(url, stack)
    await embedder.aclose()


async def ledger(project: Project, tenant: str) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await project.connection.fetch(
        "select * from ingest.usage where kind = 'search' and tenant_id = $1::uuid", tenant
    )
    return rows


async def test_it_finds_the_callers_documents_and_nobody_elses(
    function: Function, project: Project, ada: Person, bob: Person, tmp_path: Any
) -> None:
    async with working(function.stack, tmp_path / "worker.log"):
        path = await ada.upload("harbour.md", TEXT)
        assert (await project.settled(path))["state"] == "ready"
    own, foreign, narrowed = await asyncio.gather(
        function.ask(ada, {"query": "where is the tide measured?"}),
        function.ask(bob, {"query": "where is the tide measured?", "filters": {"tenant_ids": [ada.id]}}),
        function.ask(ada, {"query": "tide", "match_count": 1, "filters": {"name_prefix": "nowhere"}}),
    )
    assert own.status_code == 200, own.text
    (match,) = own.json()["matches"]
    assert match["document_name"] == path
    assert match["similarity"] > 0.3
    assert (foreign.status_code, foreign.json()) == (200, {"matches": []})
    assert (narrowed.status_code, narrowed.json()) == (200, {"matches": []})
    # Each paid for their own; naming somebody's tenant does not let them pay.
    rows = await ledger(project, ada.id)
    assert [(row["provider"], row["model"], row["requests"], row["money"]) for row in rows] == [
        ("local", "all-MiniLM-L6-v2", 1, 0)
    ] * 2
    assert all(row["tokens"] > 2 for row in rows)
    assert len(await ledger(project, bob.id)) == 1


async def test_a_search_of_one_organisation_is_in_that_organisations_ledger(
    function: Function, project: Project, ada: Person, bob: Person
) -> None:
    tenant = await project.connection.fetchval("insert into public.tenants (name) values ('Acme') returning id::text")
    await project.connection.execute(
        "insert into public.tenant_members (tenant_id, user_id, role) values ($1::uuid, $2::uuid, 'reader')",
        tenant, ada.id,
    )  # fmt: skip
    for person in (ada, bob):
        answer = await function.ask(person, {"query": "tide", "filters": {"tenant_ids": [tenant]}})
        assert answer.status_code == 200
    assert len(await ledger(project, tenant)) == 1
    assert len(await ledger(project, ada.id)) == 0
    assert len(await ledger(project, bob.id)) == 1


async def test_the_bucket_is_one_persons_and_says_when_to_come_back(
    function: Function, project: Project, ada: Person, bob: Person
) -> None:
    # A minute's worth is 60, of which a sixth may come at once.
    answers = await asyncio.gather(*(function.ask(ada, {"query": "tide"}) for _ in range(16)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert 2 <= len(refused) <= 6
    assert {answer.status_code for answer in answers} == {200, 429}
    assert {answer.json()["code"] for answer in refused} == {"rate_limited"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert len(await ledger(project, ada.id)) == 16 - len(refused)
    assert (await function.ask(bob, {"query": "tide"})).status_code == 200


async def test_a_used_up_budget_refuses_before_anything_is_paid(
    function: Function, project: Project, ada: Person
) -> None:
    await project.connection.execute("select ingest.set_budget('tenant', $1::uuid, 0)", ada.id)
    answer = await function.ask(ada, {"query": "tide"})
    assert (answer.status_code, answer.json()["code"]) == (429, "budget_exhausted")
    assert int(answer.headers["retry-after"]) <= 86_400
    assert await ledger(project, ada.id) == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        [],
        {},
        {"query": ""},
        {"query": "  "},
        {"query": 1},
        {"query": "a\0b"},
        {"query": "\ud800"},
        {"query": "a" * 4001},
        {"query": "a", "match_count": 0},
        {"query": "a", "match_count": 101},
        {"query": "a", "match_count": "5"},
        {"query": "a", "match_count": 1.5},
        {"query": "a", "filters": []},
        {"query": "a", "filters": {"tenant": "x"}},
        {"query": "a", "filters": {"tenant_ids": ["x"]}},
        {"query": "a", "query_embedding": [1.0]},
        {"query": "a", "model": "another"},
        {"query": "a", "url": "http://127.0.0.1:1"},
    ],
    ids=lambda given: str(given)[:40],
)
async def test_what_it_does_not_know_is_refused_in_a_sentence(function: Function, ada: Person, body: Any) -> None:
    answer = await function.ask(ada, body)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()) == {"code", "message"}
    assert answer.json()["message"].endswith(".")


async def test_bodies_are_bounded_and_only_posts_are_taken(function: Function, ada: Person) -> None:
    assert (await function.ask(ada, {"query": "a" * 200_000})).status_code == 413
    assert (await function.ask(ada, {"query": "word " * 700})).status_code == 422  # 4,000 characters, not 256 tokens
    async with httpx.AsyncClient() as client:
        assert (await client.get(function.url)).status_code == 405


async def test_browsers_of_listed_origins_may_read_it_and_no_others(function: Function, ada: Person) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with httpx.AsyncClient() as client:
        good = await client.options(function.url, headers=asked | {"origin": ORIGIN})
        bad = await client.options(function.url, headers=asked | {"origin": "https://evil.example.com"})
    assert (good.status_code, good.headers["access-control-allow-origin"]) == (204, ORIGIN)
    assert "authorization" in good.headers["access-control-allow-headers"]
    assert not [name for name in bad.headers if name.startswith("access-control-allow")]
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://evil.example.com", None), ("null", None)):
        answer = await function.ask(ada, {"query": "a"}, origin=origin)
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert answer.headers["vary"] == "origin"
        assert "access-control-allow-credentials" not in answer.headers


def b64(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def hs256(secret: str, claims: dict[str, Any], head: dict[str, Any] | None = None) -> str:
    signed = f"{b64(head or {'alg': 'HS256', 'typ': 'JWT'})}.{b64(claims)}"
    return f"{signed}.{b64(hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest())}"


def claims_of(user: str, **others: Any) -> dict[str, Any]:
    now = int(time.time())
    return {"sub": user, "role": "authenticated", "aud": "authenticated", "exp": now + 600, "iat": now} | others


async def test_every_bad_token_and_key_is_refused_in_the_same_words(function: Function, ada: Person) -> None:
    stack, good = function.stack, claims_of(ada.id)
    unsigned = f"{b64({'alg': 'none'})}.{b64(good)}."
    tokens = {
        "expired": hs256(stack.jwt_secret, good | {"exp": int(time.time()) - 60}),
        "without an end": hs256(stack.jwt_secret, {name: it for name, it in good.items() if name != "exp"}),
        "not yet": hs256(stack.jwt_secret, good | {"nbf": int(time.time()) + 600}),
        "forged": hs256("another secret", good),
        "none": unsigned + "x",
        "none without a signature": unsigned,
        "an algorithm by prototype": hs256(stack.jwt_secret, good, {"alg": "constructor", "kid": "a"}),
        "service_role": hs256(stack.jwt_secret, good | {"role": "service_role"}),
        "anon": hs256(stack.jwt_secret, good | {"role": "anon"}),
        "nobody": hs256(stack.jwt_secret, good | {"sub": "x"}),
        "of no user": hs256(stack.jwt_secret, claims_of(str(uuid4()))),
        "no token": "x",
        "the secret key": stack.secret_key,
    }
    answers = [await function.ask(None, {"query": "a"}, authorization=f"Bearer {token}") for token in tokens.values()]
    answers.append(await function.ask(None, {"query": "a"}))
    answers.append(await function.ask(ada, {"query": "a"}, apikey="sb_publishable_of-another-project"))
    answers.append(await function.ask(ada, {"query": "a"}, apikey=""))
    assert {name: a.status_code for name, a in zip(tokens, answers, strict=False)} == dict.fromkeys(tokens, 401)
    assert [answer.status_code for answer in answers] == [401] * len(answers)
    assert len({answer.content for answer in answers}) == 1


class SigningKeys:
    """A project with signing keys, played by a double: its published keys, and what its database says."""

    def __init__(self) -> None:
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        point, numbers = self.ec.public_key().public_numbers(), self.rsa.public_key().public_numbers()
        self.published = {
            "keys": [
                {"kid": "e", "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "key_ops": ["verify"],
                 "x": b64(point.x.to_bytes(32)), "y": b64(point.y.to_bytes(32))},
                {"kid": "r", "kty": "RSA", "alg": "RS256", "n": b64(numbers.n.to_bytes(256)), "e": "AQAB"},
            ]
        }  # fmt: skip

    def token(self, claims: dict[str, Any], alg: str = "ES256", kid: str = "e", **head: Any) -> str:
        signed = f"{b64({'alg': alg, 'kid': kid, **head})}.{b64(claims)}"
        if alg == "ES256":
            r, s = decode_dss_signature(self.ec.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
            return f"{signed}.{b64(r.to_bytes(32) + s.to_bytes(32))}"
        return f"{signed}.{b64(self.rsa.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


ADMITTED = {"refused": None, "payer": str(uuid4()), "provider": "openai", "model": "text-embedding-3-small",
            "dimensions": 3}  # fmt: skip
VECTOR = {"data": [{"embedding": [0.1, 0.2, 0.3]}], "usage": {"prompt_tokens": 7}}
LEGACY_KEY = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.c2ln"


@pytest.fixture
async def double() -> AsyncIterator[ProviderDouble]:
    async with ProviderDouble() as made:
        made.on("POST", "/rest/v1/rpc/admit_search", Reply(200, ADMITTED))
        made.on("POST", "/rest/v1/rpc/search", Reply(200, [{"chunk_id": 1}]))
        made.on("POST", "/rest/v1/rpc/record_search", Reply(200, "null"))
        made.on("POST", "/v1/embeddings", Reply(200, VECTOR))
        yield made


def beside(double: ProviderDouble, **settings: str) -> Any:
    return serving(
        "search",
        SUPABASE_URL=double.url,
        SUPABASE_ANON_KEY=LEGACY_KEY,
        SUPABASE_SERVICE_ROLE_KEY="legacy-service-key",
        SLUICE_EMBEDDINGS_URL=f"{double.url}/v1/",
        **settings,
    )


async def ask(url: str, token: str, query: str = "the query") -> httpx.Response:
    headers = {"apikey": LEGACY_KEY, "authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(timeout=60) as client:
        return await client.post(url, json={"query": query}, headers=headers)


@pytest.mark.parametrize("given", ["fetched", "from the environment"])
async def test_tokens_of_signing_keys_are_verified_by_the_published_keys(double: ProviderDouble, given: str) -> None:
    keys, user = SigningKeys(), str(uuid4())
    double.on("GET", "/auth/v1/.well-known/jwks.json", Reply(200, keys.published))
    settings = {} if given == "fetched" else {"SUPABASE_JWKS": json.dumps(keys.published)}
    other = SigningKeys()
    good = claims_of(user)
    async with beside(double, **settings) as (url, _):
        tokens = [keys.token(good), keys.token(good, "RS256", "r")]
        assert [(await ask(url, token)).status_code for token in tokens] == [200, 200]
        bad = [
            other.token(good),
            other.token(good, "RS256", "r"),
            keys.token(good, kid="unknown"),
            keys.token(good, "ES256", "r"),
            keys.token(good, "RS256", "e"),
            keys.token(good, crit=["b64"]),
            keys.token(good | {"exp": int(time.time()) - 60}),
            hs256(keys.published["keys"][0]["x"], good, {"alg": "ES256", "kid": "e"}),
        ]
        assert [(await ask(url, token)).status_code for token in bad] == [401] * len(bad)
    fetches = double.sent("GET", "/auth/v1/*")
    assert len(fetches) == 1  # once for all; in the other case, for the unknown key's sake
    searched = double.sent("POST", "/rest/v1/rpc/search")
    assert [request.headers["authorization"] for request in searched] == [f"Bearer {token}" for token in tokens]
    assert {request.headers["apikey"] for request in searched} == {LEGACY_KEY}
    assert searched[0].json == {
        "query": "the query", "match_count": 10, "filters": {}, "query_embedding": [0.1, 0.2, 0.3],
    }  # fmt: skip
    admitted = double.sent("POST", "/rest/v1/rpc/admit_search")
    assert admitted[0].json == {"user_id": user, "tenant_ids": None}
    assert {request.headers["apikey"] for request in admitted} == {"legacy-service-key"}
    (first, _) = double.sent("POST", "/v1/embeddings")
    assert first.json == {
        "model": "text-embedding-3-small", "input": "the query", "encoding_format": "float", "dimensions": 3,
    }  # fmt: skip
    assert "authorization" not in first.headers
    recorded = double.sent("POST", "/rest/v1/rpc/record_search")
    assert {name: recorded[0].json[name] for name in ("payer", "model", "tokens")} == {
        "payer": ADMITTED["payer"], "model": "text-embedding-3-small", "tokens": 7,
    }  # fmt: skip


SECRET = "what a server says of sk-live-secret and the query"


@pytest.mark.parametrize(
    ("route", "reply", "status"),
    [
        ("/v1/embeddings", Reply(401, {"error": {"message": SECRET}}), 503),
        ("/v1/embeddings", Reply(429, {"error": {"message": SECRET}}), 503),
        ("/v1/embeddings", Reply(500, SECRET), 503),
        ("/v1/embeddings", Reply(200, {"data": [{"embedding": [1.0, 2.0]}]}), 503),
        ("/v1/embeddings", Reply(200, {"data": [{"embedding": [0, 0, 0]}]}), 503),
        ("/v1/embeddings", Reply(200, {"data": [{"embedding": [1, None, 1]}]}), 503),
        ("/v1/embeddings", Reply(200, SECRET), 503),
        ("/v1/embeddings", Reply(302, b"", {"location": "http://127.0.0.1:1/"}), 503),
        ("/v1/embeddings", Reply(400, {"error": {"message": SECRET}}), 422),
        ("/rest/v1/rpc/search", Reply(500, {"code": "XX000", "message": SECRET}), 503),
        ("/rest/v1/rpc/search", Reply(401, {"code": "PGRST301", "message": SECRET}), 401),
        ("/rest/v1/rpc/admit_search", Reply(500, {"code": "XX000", "message": SECRET}), 503),
        ("/rest/v1/rpc/record_search", Reply(500, {"code": "XX000", "message": SECRET}), 200),
    ],
    ids=lambda given: str(given)[:60] if isinstance(given, str) else None,
)
async def test_what_goes_wrong_behind_it_leaks_nothing(
    double: ProviderDouble, route: str, reply: Reply, status: int
) -> None:
    keys = SigningKeys()
    double.on("POST", route, reply)
    async with beside(double, SUPABASE_JWKS=json.dumps(keys.published), SLUICE_EMBEDDINGS_KEY="sk-live-secret") as (
        url,
        process,
    ):
        token = keys.token(claims_of(str(uuid4())))
        answer = await ask(url, token)
        log = await said(process)
    assert answer.status_code == status, answer.text
    for hidden in (SECRET, "sk-live-secret", token, "the query", "legacy-service-key", double.url):
        assert hidden not in answer.text
        assert hidden not in log
    assert ("search: " in log) == (status in (503, 200))
