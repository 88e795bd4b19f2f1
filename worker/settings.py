"""Every setting, read once from the environment; secrets are SecretStr and never printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pydantic import AliasChoices, Field, FilePath, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What a worker needs to know; a missing endpoint or key is an error, never a default."""

    # A form that was left empty, as Render's and Compose's give it, means that nothing was set.
    model_config = SettingsConfigDict(env_prefix="SLUICE_", env_ignore_empty=True, extra="ignore", frozen=True)

    # The authority of the database's certificate, in PEM. With it the server must prove its name (verify-full),
    # whatever the URLs say. It stands before them, because they are read with it.
    database_ca_file: FilePath | None = Field(
        default=None, validation_alias=AliasChoices("DATABASE_CA_FILE", "SLUICE_DATABASE_CA_FILE")
    )
    database_url: SecretStr = Field(validation_alias=AliasChoices("DATABASE_URL", "SLUICE_DATABASE_URL"))
    listen_database_url: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LISTEN_DATABASE_URL", "SLUICE_LISTEN_DATABASE_URL")
    )
    # Whether a pooler stands before DATABASE_URL that gives each transaction another backend; auto asks it.
    database_pooler: Literal["auto", "session", "transaction"] = Field(
        default="auto", validation_alias=AliasChoices("DATABASE_POOLER", "SLUICE_DATABASE_POOLER")
    )
    supabase_url: str = Field(validation_alias=AliasChoices("SUPABASE_URL", "SLUICE_SUPABASE_URL"))
    supabase_secret_key: SecretStr = Field(
        validation_alias=AliasChoices("SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY")
    )

    # How jobs are taken and kept. Seconds, on the worker's monotonic clock unless the database counts.
    slots: int = Field(default=4, ge=1, le=256)
    tenant_cap: int = Field(default=4, ge=1, le=10_000)
    lease_seconds: float = Field(default=60, ge=1, le=3600)
    renew_seconds: float = Field(default=15, ge=0.2, le=600)
    poll_seconds: float = Field(default=5, ge=0.05, le=300)
    job_seconds: float = Field(default=900, ge=1, le=86_400)
    drain_seconds: float = Field(default=25, ge=0, le=300)

    # How long what has ended is kept, in days; events go a month at a time.
    keep_jobs_days: int = Field(default=7, ge=1, le=3650)
    keep_discarded_jobs_days: int = Field(default=90, ge=1, le=3650)
    keep_events_days: int = Field(default=396, ge=31, le=3650)

    # What one document may cost.
    max_file_bytes: int = Field(default=50 * 1024 * 1024, ge=1)
    max_pages: int = Field(default=2000, ge=1)
    max_text_bytes: int = Field(default=64 * 1024 * 1024, ge=1)
    parse_memory_bytes: int = Field(default=1024 * 1024 * 1024, ge=64 * 1024 * 1024)
    parse_cpu_seconds: int = Field(default=120, ge=1)
    parse_seconds: float = Field(default=180, ge=1)
    allow_unsandboxed: bool = False

    # Who embeds. `openai` is every server that speaks its protocol, at OPENAI_BASE_URL; one that wants no key gets any.
    embedder: Literal["local", "openai"] = "local"
    openai_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("OPENAI_API_KEY", "SLUICE_OPENAI_API_KEY")
    )
    openai_base_url: str | None = Field(
        default=None, validation_alias=AliasChoices("OPENAI_BASE_URL", "SLUICE_OPENAI_BASE_URL")
    )
    embed_model: str = Field(default="text-embedding-3-small", min_length=1)
    embed_dimensions: int = Field(default=1536, ge=1, le=4000)
    # Whether a request asks for vectors of that size; auto does for text-embedding-3, which can shorten theirs.
    embed_send_dimensions: Literal["auto", "yes", "no"] = "auto"
    embed_encoding: Literal["base64", "float"] = "base64"
    # What one text may have. Tokens are counted with OpenAI's cl100k_base, whatever the model: for one with another
    # tokenizer keep this, and what a chunk may hold, below its own limit by a margin.
    embed_max_tokens: int = Field(default=8191, ge=16)
    # What one request may carry, how many are under way together, and how long one waits for more texts.
    embed_batch_texts: int = Field(default=256, ge=1, le=2048)
    embed_batch_tokens: int = Field(default=100_000, ge=1, le=300_000)
    embed_concurrency: int = Field(default=8, ge=1, le=256)
    embed_linger_ms: float = Field(default=5, ge=0, le=1000)
    embed_seconds: float = Field(default=60, ge=0.1, le=600)
    # What the provider lets our key do, for all workers together; without them the database's own limits stay.
    embed_requests_per_minute: int | None = Field(default=None, ge=1)
    embed_tokens_per_minute: int | None = Field(default=None, ge=1)
    # What one chunk may hold, in the embedding model's tokens; the model's own limit holds besides.
    chunk_tokens: int = Field(default=256, ge=16)

    # Who reads the files. The services' names are those of their packages; both take the same key.
    parser: Literal["local", "llama-parse", "llama-cloud"] = "local"
    llama_cloud_api_key: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("LLAMA_CLOUD_API_KEY", "SLUICE_LLAMA_CLOUD_API_KEY")
    )
    llama_cloud_base_url: str | None = Field(
        default=None, validation_alias=AliasChoices("LLAMA_CLOUD_BASE_URL", "SLUICE_LLAMA_CLOUD_BASE_URL")
    )
    parse_tier: str = Field(default="cost_effective", min_length=1, max_length=64)
    parse_version: str = Field(default="latest", min_length=1, max_length=64)
    parse_language: str = Field(default="en", min_length=2, max_length=32)
    parse_max_pages: int = Field(default=2000, ge=1)
    parse_failed_pages: float = Field(default=0.2, ge=0, le=1)
    parse_hours: float = Field(default=2, gt=0, le=20)
    parse_cheap_first: bool = False

    # The local embedding model: where set-up put it, and how many threads it may use (0: all cores).
    model_dir: Path = Path(".sluice/models")
    embed_threads: int = Field(default=0, ge=0)

    # Where a remote parser says that it has finished: the address of the edge function parse-webhook, and what signs
    # its messages where it can. Without them the worker asks.
    webhook_url: str | None = None
    webhook_secret: SecretStr | None = Field(default=None, min_length=16)

    # What tells about this worker: a port for /live, /ready and /metrics, and how long its loop may stand still.
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    health_host: str = Field(default="127.0.0.1", min_length=1)
    wedged_seconds: float = Field(default=60, ge=0.5, le=3600)
    git_sha: str | None = Field(
        default=None, max_length=64, validation_alias=AliasChoices("SLUICE_GIT_SHA", "RENDER_GIT_COMMIT")
    )

    temp_dir: Path | None = None
    log_level: str = "INFO"

    @field_validator("database_url", "listen_database_url")
    @classmethod
    def _verified(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # In the URL, so that every connection that is made from it is verified, whoever makes it.
        file = info.data.get("database_ca_file")
        if url is None or file is None:
            return url
        try:
            parts = urlsplit(url.get_secret_value())
        except ValueError:
            return url  # whoever connects says what is wrong with it
        kept = [(key, value) for key, value in parse_qsl(parts.query) if key not in ("sslmode", "sslrootcert")]
        query = urlencode([*kept, ("sslmode", "verify-full"), ("sslrootcert", str(file.resolve()))])
        return SecretStr(urlunsplit(parts._replace(query=query)))

    @field_validator("webhook_url")
    @classmethod
    def _callable_from_outside(cls, url: str | None) -> str | None:
        # Parsers take https, a name instead of an address, and less than 200 characters, of which 75 are added.
        if url is not None and not (
            len(url) <= 120 and re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]{2,}(:\d+)?/[\w./-]*", url, re.IGNORECASE)
        ):
            raise ValueError("must be an https address with a domain name, 120 characters at most and without a query")
        return url
