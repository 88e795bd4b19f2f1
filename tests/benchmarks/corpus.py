"""A corpus of any size for searching: documents of 100 chunks in many tenants, loaded as the superuser by COPY.

Words follow a Zipf distribution that all tenants share, so that single words hit from 0.1 to 100 per cent of the
chunks, and two together down to 0.01; each document adds words of its topic. A chunk's vector lies around its
topic's. Every document ends with the same boilerplate chunk (one vector, many chunks), and one vector in fifty
belongs to no chunk, as after an overwrite.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from uuid import UUID

import asyncpg
import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 384
MODEL = 1
CHUNKS_A_DOCUMENT = 100
WORDS_A_CHUNK = 180  # some 256 tokens of English
VOCABULARY = 8000
TOPICS = 200
ORPHAN_SHARE = 0.02
_TOPIC_WORDS = 40
_TOPIC_SHARE = 0.15
_NOISE = 0.8  # length of a chunk's deviation from its topic's unit vector

_VECTOR_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("model_length", ">i4"), ("model", ">i2"),
        ("tenant_length", ">i4"), ("tenant", "S16"),
        ("key_length", ">i4"), ("key", "S32"),
        ("vector_length", ">i4"), ("dimensions", ">i2"), ("unused", ">i2"), ("vector", ">f2", (DIMENSIONS,)),
    ]
)  # fmt: skip
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_COPY_TRAILER = struct.pack(">h", -1)

_CHUNK_COLUMNS = [
    "document_id", "tenant_id", "ordinal", "page_start", "page_end", "char_start", "char_end",
    "token_count", "language", "heading_path", "context", "content", "content_sha256",
]  # fmt: skip


def key_of(context: str, content: str) -> bytes:
    """Return a chunk's content_sha256."""
    return hashlib.sha256(f"{context}\0{content}".encode()).digest()


@dataclass
class Tenant:
    """What brute force needs of a tenant: the vector of each of its contents, and how many chunks hold it."""

    id: UUID
    keys: list[bytes] = field(default_factory=list)
    multiplicity: list[int] = field(default_factory=list)  # 0: an orphan
    vectors: list[NDArray[np.float16]] = field(default_factory=list)
    position: dict[bytes, int] = field(default_factory=dict)
    _matrix: NDArray[np.float64] | None = None

    def add(self, keys: list[bytes], vectors: NDArray[np.float16], chunks: int) -> None:
        """Note contents with the vectors as they are stored, each in `chunks` chunks."""
        for key in keys:
            self.position[key] = len(self.keys)
            self.keys.append(key)
            self.multiplicity.append(chunks)
        self.vectors.append(vectors)

    def distances(self, query: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the cosine distance of every content to `query`, in double precision."""
        if self._matrix is None:
            stored = np.concatenate(self.vectors).astype(np.float64)
            self._matrix = stored / np.linalg.norm(stored, axis=1, keepdims=True)
        exact = query.astype(np.float64)
        return 1 - self._matrix @ (exact / np.linalg.norm(exact))

    def nearest(self, query: NDArray[np.float32], count: int) -> NDArray[np.float64]:
        """Return the distances of the `count` nearest chunks."""
        return np.sort(np.repeat(self.distances(query), self.multiplicity))[:count]


class Corpus:
    """Texts and vectors, the same for the same arguments."""

    def __init__(self, chunks: int, tenants: int, seed: int = 1) -> None:
        if tenants < 1 or chunks < 10 * tenants:
            raise ValueError(f"{chunks} chunks are too few for {tenants} tenants: at least 10 for each.")
        self.seed = seed
        random = np.random.default_rng(seed)
        self.tenants = [Tenant(UUID(bytes=random.bytes(16), version=4)) for _ in range(tenants)]
        self.a_tenant = chunks // tenants
        self.words = np.array(_words(VOCABULARY, random), dtype=object)
        weights = 1 / np.arange(1, VOCABULARY + 1)
        self._cumulated = np.cumsum(weights / weights.sum())
        # A topic's words are among the rarer ones.
        self._topic_words = random.integers(VOCABULARY // 4, VOCABULARY, (TOPICS, _TOPIC_WORDS))
        centres = random.standard_normal((TOPICS, DIMENSIONS)).astype(np.float32)
        self.centres: NDArray[np.float32] = centres / np.linalg.norm(centres, axis=1, keepdims=True)

    async def load(self, admin: asyncpg.Connection, say: Callable[[str], None] = lambda _: None) -> None:
        """Fill an empty migrated database; the indexes are the migrations' own afterwards. Vacuums and analyzes."""
        index = await admin.fetchval("select pg_get_indexdef('public.chunks_fts_idx'::regclass)")
        await admin.executemany(
            "insert into auth.users (id, email) values ($1, $2)",
            [(tenant.id, f"{tenant.id}@example.org") for tenant in self.tenants],
        )
        # Without foreign key triggers, and the GIN index made at the end: 12 times as fast.
        await admin.execute("set session_replication_role = 'replica'")
        await admin.execute("set maintenance_work_mem = '512MB'")
        await admin.execute("drop index public.chunks_fts_idx")
        done, total = 0, self.a_tenant * len(self.tenants)
        for documents, chunks, vectors in self._documents():
            await admin.copy_records_to_table(
                "documents", schema_name="public", records=documents,
                columns=["id", "tenant_id", "bucket_id", "name", "state", "published_generation", "title", "language"],
            )  # fmt: skip
            await admin.copy_records_to_table("chunks", schema_name="public", records=chunks, columns=_CHUNK_COLUMNS)
            await admin.copy_to_table(
                "embeddings", schema_name="ingest", source=_bytes(vectors), format="binary",
                columns=["model_id", "tenant_id", "content_sha256", "embedding"],
            )  # fmt: skip
            done += len(chunks)
            say(f"loaded {done:,} of {total:,} chunks")
        say("building the full-text index")
        await admin.execute(index)
        await admin.execute("reset session_replication_role")
        await admin.execute("reset maintenance_work_mem")
        say("vacuum analyze")
        await admin.execute("vacuum (analyze) public.documents, public.chunks, public.tenants, ingest.embeddings")

    def _documents(self) -> Iterator[tuple[list[tuple[object, ...]], list[tuple[object, ...]], list[NDArray[np.void]]]]:
        """Yield rows of some documents at a time; the tenants' documents come mixed, as uploads do."""
        random = np.random.default_rng(self.seed + 1)
        left = np.full(len(self.tenants), self.a_tenant)
        order = np.repeat(np.arange(len(self.tenants)), -(-self.a_tenant // CHUNKS_A_DOCUMENT))
        random.shuffle(order)
        for start in range(0, len(order), 50):
            documents: list[tuple[object, ...]] = []
            chunks: list[tuple[object, ...]] = []
            vectors: list[NDArray[np.void]] = []
            for number in range(start, min(start + 50, len(order))):
                tenant = self.tenants[order[number]]
                count = int(min(CHUNKS_A_DOCUMENT, left[order[number]]))
                left[order[number]] -= count
                document = UUID(bytes=random.bytes(16), version=4)
                title = f"Report {number}"
                documents.append(
                    (document, tenant.id, "documents", f"{tenant.id}/{number}.pdf", "ready", 1, title, "english")
                )
                rows, stored = self._document(tenant, document, title, count, random)
                chunks += rows
                vectors += stored
            yield documents, chunks, vectors

    def _document(
        self, tenant: Tenant, document: UUID, title: str, count: int, random: np.random.Generator
    ) -> tuple[list[tuple[object, ...]], list[NDArray[np.void]]]:
        topic = int(random.integers(TOPICS))
        texts = [(title, content) for content in self._texts(topic, count - 1, random)]
        texts.append(("", f"Boilerplate of {tenant.id}: all rights reserved, figures are provisional."))
        rows: list[tuple[object, ...]] = []
        offset = 0
        for ordinal, (context, content) in enumerate(texts):
            page = ordinal // 2 + 1
            rows.append(
                (document, tenant.id, ordinal, page, page, offset, offset + len(content), 256, "english",
                 [title], context, content, key_of(context, content))
            )  # fmt: skip
            offset += len(content) + 2
        keys = [key_of(context, content) for context, content in texts]
        vectors = self.around(topic, count, random)
        tenant.add(keys[:-1], vectors[:-1], 1)
        stored = [_rows(tenant.id, keys[:-1], vectors[:-1])]
        if keys[-1] in tenant.position:
            tenant.multiplicity[tenant.position[keys[-1]]] += 1
        else:
            tenant.add(keys[-1:], vectors[-1:], 1)
            stored.append(_rows(tenant.id, keys[-1:], vectors[-1:]))
        orphans = [random.bytes(32) for _ in range(max(1, round(count * ORPHAN_SHARE)))]
        unused = self.around(topic, len(orphans), random)
        tenant.add(orphans, unused, 0)
        stored.append(_rows(tenant.id, orphans, unused))
        return rows, stored

    def _texts(self, topic: int, count: int, random: np.random.Generator) -> list[str]:
        common = np.searchsorted(self._cumulated, random.random((count, WORDS_A_CHUNK)))
        own = self._topic_words[topic][random.integers(_TOPIC_WORDS, size=(count, WORDS_A_CHUNK))]
        words = self.words[np.where(random.random((count, WORDS_A_CHUNK)) < _TOPIC_SHARE, own, common)]
        return [" ".join(row) + "." for row in words.tolist()]

    def around(self, topic: int, count: int, random: np.random.Generator) -> NDArray[np.float16]:
        """Return unit vectors near a topic, as halfvec stores them."""
        noise = random.standard_normal((count, DIMENSIONS)).astype(np.float32) * (_NOISE / DIMENSIONS**0.5)
        vectors = self.centres[topic] + noise
        stored: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        return stored

    def query(self, random: np.random.Generator) -> str:
        """Return one to three words, the rarer the fewer; every seventh query asks for either of two."""
        either = random.random() < 1 / 7
        count = 2 if either else int(random.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
        rarest = VOCABULARY // (1, 6, 25)[count - 1]
        ranks = np.exp(random.uniform(np.log(25), np.log(rarest), size=count)).astype(int)
        return (" or " if either else " ").join(str(self.words[rank]) for rank in ranks)

    def query_vector(self, tenant: Tenant, off_topic: bool, random: np.random.Generator) -> NDArray[np.float32]:
        """Return a vector near one of the tenant's chunks, or one near nothing."""
        vector: NDArray[np.float32] = random.standard_normal(DIMENSIONS).astype(np.float32)
        if not off_topic:
            vector *= 0.6 / DIMENSIONS**0.5
            group = tenant.vectors[random.integers(len(tenant.vectors))]
            vector += group[random.integers(len(group))].astype(np.float32)
        return vector / np.linalg.norm(vector)


def _words(count: int, random: np.random.Generator) -> list[str]:
    """Return pronounceable words that English stemming leaves apart (they end in neither s, d, g nor a vowel)."""
    onsets = ["b", "br", "c", "d", "f", "g", "k", "l", "m", "n", "p", "pl", "r", "st", "t", "tr", "v", "z"]
    syllables = ["".join(pair) for pair in product(onsets, "aeiou")]
    made = ["".join(parts) + end for *parts, end in product(syllables, syllables, ["k", "m", "n", "p", "x"])]
    random.shuffle(made)
    return made[:count]


def _rows(tenant: UUID, keys: list[bytes], vectors: NDArray[np.float16]) -> NDArray[np.void]:
    rows = np.zeros(len(keys), dtype=_VECTOR_ROW)
    rows["fields"] = 4
    rows["model_length"], rows["model"] = 2, MODEL
    rows["tenant_length"], rows["tenant"] = 16, tenant.bytes
    rows["key_length"], rows["key"] = 32, np.array(keys, dtype="S32")
    rows["vector_length"] = 4 + 2 * DIMENSIONS
    rows["dimensions"], rows["vector"] = DIMENSIONS, vectors
    return rows


async def _bytes(rows: list[NDArray[np.void]]) -> AsyncIterator[bytes]:
    yield _COPY_HEADER
    for some in rows:
        yield some.tobytes()
    yield _COPY_TRAILER
