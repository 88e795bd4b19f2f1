"""The demo's display of progress that comes by Realtime, and when it reads the tables instead."""

from __future__ import annotations

import asyncio
from typing import Any

from local.demo.following import Following
from local.demo.progress import Row


def progress(counter: int, state: str = "running", stage: str | None = "embed") -> dict[str, Any]:
    return {"counter": counter, "state": state, "stage": stage, "progress": counter / 100, "error_code": None}


async def followed() -> tuple[Row, Following]:
    row = Row("a.pdf", id="one", state="pending")
    following = Following([row])
    following.hear({"document": "one", "state": "SUBSCRIBED"})
    assert await following.stirred()  # what moved before the channel was open
    return row, following


async def test_what_is_heard_is_shown_without_reading_the_tables() -> None:
    row, following = await followed()
    following.hear({"document": "one", "progress": progress(7)})
    assert not await following.stirred()
    assert (row.state, row.stage, row.progress) == ("processing", "embed", 0.07)
    assert following.messages == 1


async def test_a_message_older_than_what_is_shown_is_dropped() -> None:
    row, following = await followed()
    following.hear({"document": "one", "progress": progress(9, stage="publish")})
    following.hear({"document": "one", "progress": progress(8, stage="embed")})
    assert row.stage == "publish"


async def test_the_end_is_read_from_the_tables() -> None:
    row, following = await followed()
    following.hear({"document": "one", "progress": progress(9, "completed", None)})
    assert await following.stirred()
    assert row.state == "pending"


async def test_a_document_whose_channel_does_not_come_up_or_closes_is_looked_for_often() -> None:
    row, following = await followed()
    for state in ("CHANNEL_ERROR", "CLOSED", "TIMED_OUT"):
        following.hear({"document": "one", "state": "SUBSCRIBED"})
        following.hear({"document": "one", "state": state})
        assert await following.stirred()
        async with asyncio.timeout(2):
            assert await following.stirred()
    row.state = "ready"
    waiting = asyncio.ensure_future(following.stirred())
    await asyncio.sleep(0.5)
    assert not waiting.done()
    waiting.cancel()
