"""The providers: keys, models and files, asked in the cheapest way that proves them."""

from __future__ import annotations

import asyncio
import importlib.util
from importlib import metadata
from typing import TYPE_CHECKING

from worker.errors import IngestError, Misconfigured
from worker.model import EmbeddingModel
from worker.operate.doctor.check import Check, NotSet, NotUsed, Problem
from worker.operate.doctor.examination import Examination, Unanswered
from worker.pipeline.embed import minilm
from worker.pipeline.embed.embedder import Batching
from worker.pipeline.parse.remote import ADDRESSES, KEY_PATH

if TYPE_CHECKING:
    from worker.pipeline.embed.openai import OpenAIEmbedder

_SECONDS = 10
_NO_SIGNATURE = {"lc-signature": "sha256=" + "0" * 64, "content-type": "application/json"}
_BUILD = "Build it: python -m worker.pipeline.embed.minilm build --to {directory}"

NOT_INSTALLED = Problem(
    "local_not_installed",
    "The packages of the local {what} are not installed: {which}.",
    "Install the extra: pip install --require-hashes -r requirements/local.txt",
)
MODEL_MISSING = Problem(
    "embedding_model_missing", "The local embedding model is not in {directory} (SLUICE_MODEL_DIR).", _BUILD
)
MODEL_CHANGED = Problem(
    "embedding_model_changed",
    "The files of the local embedding model in {directory} are not those that were built: their hashes differ.",
    _BUILD,
)
OPENAI_KEY = Problem(
    "embedding_key_refused",
    "The embedding service refuses OPENAI_API_KEY.",
    "Make a new key with the right to embed, and set it; see that it belongs to the account behind OPENAI_BASE_URL.",
)
OPENAI_UNREACHABLE = Problem(
    "embedding_unreachable",
    "The embedding service at {url} does not answer.",
    "Correct OPENAI_BASE_URL (it usually ends in /v1), or see what keeps this machine from it.",
)
OPENAI_MODEL = Problem(
    "embedding_model_unknown",
    "The embedding service does not know the model {model}.",
    "Correct SLUICE_EMBED_MODEL, or give the key the right to use that model.",
)
OPENAI_DIMENSION = Problem(
    "embedding_dimension",
    "The model {model} gives vectors of another size than SLUICE_EMBED_DIMENSIONS={dimensions}.",
    "Set SLUICE_EMBED_DIMENSIONS to the model's own size, or SLUICE_EMBED_SEND_DIMENSIONS=yes where it can shorten.",
)
OPENAI_FAILED = Problem(
    "embedding_failed",
    "The embedding service refused the question ({code}{detail}).",
    "Look the code up with the provider; an account that is used up must be paid or its limit raised.",
)
PARSER_PACKAGE = Problem(
    "parser_not_installed",
    "SLUICE_PARSER is {parser}, but its package is not installed.",
    "Install it, in an environment without the other one: pip install --require-hashes -r requirements/{parser}.txt",
)
LLAMA_KEY = Problem(
    "llamaparse_key_refused",
    "LlamaParse at {url} refuses LLAMA_CLOUD_API_KEY.",
    "Make a new key in LlamaCloud, and set it.",
)
LLAMA_REGION = Problem(
    "llamaparse_region",
    "LLAMA_CLOUD_API_KEY is a key of another region: {url} refuses it, and {other} takes it.",
    "Set LLAMA_CLOUD_BASE_URL={other}",
)
LLAMA_UNREACHABLE = Problem(
    "llamaparse_unreachable",
    "LlamaParse at {url} does not answer as it should ({why}).",
    "Correct LLAMA_CLOUD_BASE_URL, or see what keeps this machine from it.",
)
WEBHOOK_UNREACHABLE = Problem(
    "webhook_unreachable",
    "SLUICE_WEBHOOK_URL cannot be reached ({why}), so finished parses are found by the timer only.",
    "Set it to https://<project ref>.supabase.co/functions/v1/parse-webhook, reachable from outside.",
)
WEBHOOK_NOT_OURS = Problem(
    "webhook_not_ours",
    "What answers at SLUICE_WEBHOOK_URL is not the edge function parse-webhook (HTTP {status}).",
    "Deploy the function, with verify_jwt off as supabase/config.toml has it, and set the URL to its address.",
)
WEBHOOK_UNSIGNED = Problem(
    "webhook_takes_unsigned",
    "SLUICE_WEBHOOK_SECRET is set for the worker, but the function parse-webhook takes messages that are not signed.",
    "Give the function the same secret: supabase secrets set SLUICE_WEBHOOK_SECRET=…",
    warning=True,
)


async def local_model(examination: Examination) -> str:
    """Verify the local model's files by their hashes."""
    settings = examination.settings
    if settings.embedder != "local":
        raise NotUsed(f"SLUICE_EMBEDDER is {settings.embedder}.")
    if missing := [name for name in ("onnxruntime", "tokenizers") if importlib.util.find_spec(name) is None]:
        raise NOT_INSTALLED.found(what="embedding model", which=", ".join(missing))
    try:
        await asyncio.to_thread(minilm.load, settings.model_dir)
    except Misconfigured as exc:
        built = (settings.model_dir / minilm.FOLDER / minilm.MANIFEST).exists()
        raise (MODEL_CHANGED if built else MODEL_MISSING).found(directory=settings.model_dir) from exc
    return f"The model {minilm.FOLDER} is whole."


async def openai(examination: Examination) -> str:
    """Ask for the list of models, which costs nothing and wants a good key."""
    settings = examination.settings
    embedder = _embedder(examination)
    try:
        known = await embedder.models()
    except IngestError as exc:
        raise _translated(examination, exc) from exc
    finally:
        await embedder.aclose()
    if known is None:
        return "The service takes the key; it lists no models, so only --paid can prove the model."
    if settings.embed_model not in known:
        raise OPENAI_MODEL.found(model=settings.embed_model)
    return f"The service takes the key and knows {settings.embed_model}."


async def openai_paid(examination: Examination) -> str:
    """Embed one word and compare the vector's size; costs a fraction of a cent."""
    if examination.settings.embedder == "openai" and not examination.paid:
        raise NotUsed("It costs a token: run with --paid.")
    embedder = _embedder(examination)
    try:
        await embedder.embed(["harbour"])
    except IngestError as exc:
        raise _translated(examination, exc) from exc
    finally:
        await embedder.aclose()
    return f"A vector came, with {examination.settings.embed_dimensions} dimensions."


def _embedder(examination: Examination) -> OpenAIEmbedder:
    settings = examination.settings
    if settings.embedder != "openai":
        raise NotUsed(f"SLUICE_EMBEDDER is {settings.embedder}.")
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
    if not key and not settings.openai_base_url:
        raise NotSet("OPENAI_API_KEY is not set.")
    # Imported here: the SDK takes most of a second.
    from worker.pipeline.embed.openai import BASE_URL, OpenAIEmbedder

    send = {"yes": True, "no": False, "auto": settings.embed_model.startswith("text-embedding-3")}
    return OpenAIEmbedder(
        EmbeddingModel("openai", settings.embed_model, settings.embed_dimensions, settings.embed_max_tokens),
        Batching(1, 16, 1, 0),
        key=key or "none", base_url=settings.openai_base_url or BASE_URL,
        send_dimensions=send[settings.embed_send_dimensions], encoding=settings.embed_encoding, seconds=_SECONDS,
    )  # fmt: skip


def _translated(examination: Examination, exc: IngestError) -> Exception:
    settings = examination.settings
    match exc.code:
        case "embedding_key":
            return OPENAI_KEY.found()
        case "embedding_unavailable":
            return OPENAI_UNREACHABLE.found(url=_without_login(settings.openai_base_url or "OpenAI's own address"))
        case "embedding_model_unknown":
            return OPENAI_MODEL.found(model=settings.embed_model)
        case "embedding_dimension":
            return OPENAI_DIMENSION.found(model=settings.embed_model, dimensions=settings.embed_dimensions)
    return OPENAI_FAILED.found(code=exc.code, detail=f", {exc.detail}" if exc.detail else "")


async def parser_package(examination: Examination) -> str:
    """Look for the packages of the parser that the settings name."""
    settings = examination.settings
    # Looked up, not imported: only the sandboxed child may load them.
    missing = [name for name in ("pypdfium2_raw", "lxml") if importlib.util.find_spec(name) is None]
    if missing and (settings.parser == "local" or settings.parse_cheap_first):
        raise NOT_INSTALLED.found(what="parser", which=", ".join(missing))
    if settings.parser != "local":
        try:
            version = metadata.version(settings.parser)
        except metadata.PackageNotFoundError:
            version = "0"
        # llama-parse brings an old llama-cloud of the same name.
        if version.startswith("0") and not (settings.parser == "llama-parse" and version != "0"):
            raise PARSER_PACKAGE.found(parser=settings.parser)
    return f"The packages of the parser {settings.parser} are installed."


async def llamaparse(examination: Examination) -> str:
    """Show the key to LlamaParse; where it is refused, to the other region too."""
    settings = examination.settings
    if settings.parser == "local":
        raise NotUsed("SLUICE_PARSER is local.")
    if settings.llama_cloud_api_key is None:
        raise NotSet("LLAMA_CLOUD_API_KEY is not set.")
    url = (settings.llama_cloud_base_url or ADDRESSES[0]).rstrip("/")
    status = await _llama_status(examination, url)
    if status in (401, 403):
        for other in ADDRESSES:
            if other != url and await _llama_status(examination, other, quietly=True) == 200:
                raise LLAMA_REGION.found(url=url, other=other)
        raise LLAMA_KEY.found(url=url)
    if status != 200:
        raise LLAMA_UNREACHABLE.found(url=url, why=f"HTTP {status}")
    return "LlamaParse takes the key."


async def _llama_status(examination: Examination, url: str, *, quietly: bool = False) -> int:
    key = examination.settings.llama_cloud_api_key
    assert key is not None
    try:
        answer = await examination.request(
            "GET", url + KEY_PATH, headers={"authorization": f"Bearer {key.get_secret_value()}"}
        )
    except Unanswered as exc:
        if quietly:
            return 0
        raise LLAMA_UNREACHABLE.found(url=_without_login(url), why=exc) from exc
    return answer.status_code


async def webhook(examination: Examination) -> str:
    """Send what the function must refuse: a message with a wrong signature, then one without any."""
    settings = examination.settings
    if settings.webhook_url is None:
        raise NotUsed("SLUICE_WEBHOOK_URL is not set: finished parses are found by the timer.")
    signed, unsigned = await _post(examination, _NO_SIGNATURE), await _post(examination, {})
    if signed != (401, "unauthorized"):
        raise WEBHOOK_NOT_OURS.found(status=signed[0])
    if settings.webhook_secret is not None and unsigned[0] == 404:
        raise WEBHOOK_UNSIGNED.found()
    return "The function parse-webhook answers, and refuses a wrong signature."


async def _post(examination: Examination, headers: dict[str, str]) -> tuple[int, str]:
    url = examination.settings.webhook_url
    assert url is not None
    try:
        answer = await examination.request("POST", url, content=b"{}", headers=headers)
    except Unanswered as exc:
        raise WEBHOOK_UNREACHABLE.found(why=exc) from exc
    try:
        return answer.status_code, str(answer.json().get("code"))
    except (ValueError, AttributeError):
        return answer.status_code, ""


def _without_login(url: str) -> str:
    """Return an address without a user and password that somebody wrote into it."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


CHECKS = (
    Check(
        "local_model", "provider", "The local embedding model is whole", local_model,
        (NOT_INSTALLED, MODEL_MISSING, MODEL_CHANGED), seconds=20,
    ),
    Check(
        "openai", "provider", "The embedding service takes the key and knows the model", openai,
        (OPENAI_KEY, OPENAI_UNREACHABLE, OPENAI_MODEL, OPENAI_FAILED), seconds=15,
    ),
    Check(
        "openai_paid", "provider", "The embedding service gives vectors of the right size (--paid)", openai_paid,
        (OPENAI_KEY, OPENAI_UNREACHABLE, OPENAI_MODEL, OPENAI_DIMENSION, OPENAI_FAILED), needs=("openai",), seconds=15,
    ),
    Check(
        "parser_package", "provider", "The parser's packages are installed", parser_package,
        (NOT_INSTALLED, PARSER_PACKAGE),
    ),
    Check(
        "llamaparse", "provider", "LlamaParse takes the key", llamaparse,
        (LLAMA_KEY, LLAMA_REGION, LLAMA_UNREACHABLE), seconds=15,
    ),
    Check(
        "webhook", "provider", "The webhook's address is ours, and refuses what is not signed", webhook,
        (WEBHOOK_UNREACHABLE, WEBHOOK_NOT_OURS, WEBHOOK_UNSIGNED), seconds=12,
    ),
)  # fmt: skip
