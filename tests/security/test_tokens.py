"""The matrix over HTTP: what a token is worth at the API, where it is good, expired, forged or unsigned."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import websockets

from local.stack import Stack
from tests.security.http_world import VECTOR, HttpWorld, http_world
from tests.security.matrix import WRITTEN

HTTP: dict[str, Any] = WRITTEN["http"]
CALLERS: list[str] = HTTP["callers"].split()


@pytest.fixture(scope="module")
async def world(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HttpWorld]:
    async with http_world(stack, Path(tmp_path_factory.mktemp("worker")) / "worker.log") as made:
        yield made


@pytest.mark.parametrize("request_", HTTP["requests"])
async def test_the_cells_over_http_are_as_written(
    world: HttpWorld, request_: str, record_property: Callable[[str, object], None]
) -> None:
    about = HTTP["requests"][request_]
    callers = about.get("callers", HTTP["callers"]).split()
    before = await world.state()
    seen = {}
    for caller in callers:
        fresh = await world.fresh() if "{fresh}" in f"{request_}{about}" else ""
        values = {
            "tenant": world.ada.id, "document": world.document, "name": world.name, "fresh": fresh, "new": str(uuid4()),
        }  # fmt: skip
        method, path = _fill(request_, values).split(" ")
        body = None if "body" not in about else json.loads(_fill(json.dumps(about["body"]), values))
        seen[caller] = _outcome(await world.as_caller(caller, method, path, body))
    assert seen == dict(zip(callers, about["may"].split(), strict=True))
    # Nothing of this list touches the document itself, whoever sends it.
    assert await world.state() == before
    record_property("cells", len(callers))


@pytest.mark.parametrize("topic", WRITTEN["joins"]["topics"])
async def test_the_channels_that_are_joined_are_as_written(
    world: HttpWorld, topic: str, record_property: Callable[[str, object], None]
) -> None:
    joins = WRITTEN["joins"]
    name = _fill(topic, {"tenant": world.ada.id, "document": world.document})
    seen = {caller: await _join(world, caller, name) for caller in joins["callers"].split()}
    assert seen == dict(zip(seen, joins["topics"][topic].split(), strict=True))
    record_property("cells", len(seen))


async def _join(world: HttpWorld, caller: str, topic: str) -> str:
    key = "sb_publishable_of-another-project" if caller == "keyless" else world.stack.publishable_key
    token = world.tokens.get("A" if caller == "keyless" else caller)
    payload = {"config": {"private": True, "broadcast": {}}} | ({"access_token": token} if token else {})
    url = f"{world.stack.api_url.replace('http', 'ws', 1)}/realtime/v1/websocket?apikey={key}&vsn=1.0.0"
    try:
        async with asyncio.timeout(30), websockets.connect(url) as socket:
            join = {"topic": f"realtime:{topic}", "event": "phx_join", "payload": payload, "ref": "1", "join_ref": "1"}
            await socket.send(json.dumps(join))
            while (answer := json.loads(await socket.recv()))["event"] != "phx_reply":
                pass
    except websockets.InvalidStatus as refused:
        return "x" if refused.response.status_code in (401, 403) else str(refused.response.status_code)
    except websockets.ConnectionClosed:
        return "x"
    return "ok" if answer["payload"]["status"] == "ok" else "x"


def _fill(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", value)
    return text.replace('"{vector}"', json.dumps(VECTOR))


def _outcome(answer: httpx.Response) -> str:
    if answer.status_code >= 500:
        return str(answer.status_code)
    if answer.status_code >= 400:
        return "x"
    return "." if answer.content in (b"", b"[]", b"null") else "ok"
