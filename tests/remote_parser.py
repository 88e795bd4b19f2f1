"""A remote parser that is a script: it counts what was paid for and answers as told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeAlias

from worker.model import Page, Parsed, Source
from worker.pipeline.parse.parser import JsonValue, Webhook

Answer: TypeAlias = "Parsed | Exception | None"


def pages(*texts: str, notes: tuple[str, ...] = ()) -> Parsed:
    """Return an answer with these pages."""
    return Parsed(
        tuple(Page(number, text) for number, text in enumerate(texts, 1)), notes=notes, credits=3.0 * len(texts)
    )


class ScriptedParser:
    """`answers` are what polls return, once each and the last for ever; `submitted` has a file's bytes a submit.

    A submit waits for `taken` after it was counted, then raises what `refusals` hold, in order.
    """

    name = "scripted"
    version = "1"
    remote = True
    options: Mapping[str, JsonValue] = {"tier": "any"}

    def __init__(self) -> None:
        self.submitted: list[bytes] = []
        self.webhooks: list[Webhook | None] = []
        self.polled: list[str] = []
        self.answers: list[Answer] = [None]
        self.refusals: list[Exception] = []
        self.taken = asyncio.Event()
        self.taken.set()

    async def submit(self, source: Source, webhook: Webhook | None = None) -> str:
        """Count the file, and return a reference that nobody else has."""
        if self.refusals:
            raise self.refusals.pop(0)
        self.submitted.append(source.path.read_bytes())
        self.webhooks.append(webhook)
        reference = f"job-{len(self.submitted)}"
        await self.taken.wait()
        return reference

    async def poll(self, reference: str) -> Parsed | None:
        """Give the next answer."""
        self.polled.append(reference)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def aclose(self) -> None:
        """Hold nothing."""
