"""What people do meanwhile: uploads, overwrites, moves and deletes over HTTP, and what was accepted of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

import httpx

from local.stack import Stack
from tests.chaos import provider, worker_entry

BUCKET = "documents"
_PATIENCE_SECONDS = 60.0
_WORDS = (
    "anchor", "basin", "berth", "buoy", "cable", "channel", "crane", "deck", "dock", "ferry", "fog", "gauge",
    "harbour", "island", "keel", "lamp", "launch", "mast", "mooring", "pier", "pilot", "port", "quay", "radar",
    "rope", "rudder", "sail", "ship", "signal", "storm", "swell", "tide", "tower", "tug", "vessel", "watch", "wind",
)  # fmt: skip

Poison = Literal["refused", "kills its parser", "kills its worker"]

POISON = "poison"
_NAMES: dict[Poison | None, str] = {
    "refused": f"{POISON}-refused",
    "kills its parser": f"{POISON}-{worker_entry.KILLER_NAME}",
    "kills its worker": f"{POISON}-kills-its-worker",
}


@dataclass
class Plan:
    """One document's life, decided before the run begins."""

    tenant: str
    name: str
    poison: Poison | None
    contents: list[bytes]
    pauses: list[float]
    moves_to: str | None
    deleted: bool
    begins: float


@dataclass
class Accepted:
    """What Storage said yes to last: the name and the bytes, or that it is gone.

    `unanswered` are bytes of which nobody knows whether or when they were stored: such a request may be carried out
    after a later one.
    """

    name: str
    content: bytes | None
    poison: Poison | None
    unanswered: list[bytes]


def plans(count: int, seed: int, tenants: list[str], rate: float) -> list[Plan]:
    """Plan lives whose uploads and overwrites are `count` together, begun at `rate` a second.

    Two in a hundred are poison, at least one of each kind; the number of workers that one poison document kills is
    what the suite is to show, so of those there are few.
    """
    randomness = random.Random(f"traffic {seed}")
    made: list[Plan] = []
    uploads = 0
    kinds: list[Poison] = ["refused", "kills its parser", "kills its worker"]
    poisons: dict[int, Poison] = {}
    for index in range(max(3, count // 100)):
        kind = kinds[index % 3 if index < 3 else index % 2]
        poisons[randomness.randrange(max(1, count // 2))] = kind
    while uploads < count:
        number = len(made)
        poison = poisons.get(number)
        tenant = randomness.choice(tenants)
        versions = 1 if poison else min(count - uploads, randomness.choices((1, 2, 4), (80, 15, 5))[0])
        suffix = "md" if poison is None and randomness.random() < 0.08 else "txt"
        name = plan_name(tenant, number, poison, suffix)
        contents = [text(randomness, f"{seed}-{number}-{v}", poison) for v in range(versions)]
        copied = [p for p in made[-8:] if p.tenant == tenant and not p.poison and p.name.endswith(suffix)]
        if not poison and copied and randomness.random() < 0.1:
            contents[-1] = copied[-1].contents[-1]  # the same bytes twice in a tenant: parsed and embedded once
        made.append(Plan(
            tenant, name, poison, contents, [randomness.choice((0.0, 0.02, 0.3, 1.5)) for _ in range(versions + 1)],
            f"{tenant}/moved/{number}.{suffix}" if not poison and randomness.random() < 0.06 else None,
            not poison and randomness.random() < 0.06, uploads / rate,
        ))  # fmt: skip
        uploads += versions
    return made


def plan_name(tenant: str, number: int, poison: Poison | None, suffix: str) -> str:
    """Return an object's name, which tells poison from the rest."""
    return f"{tenant}/{_NAMES.get(poison, 'plain')}-{number}.{suffix}"


def text(randomness: random.Random, stamp: str, poison: Poison | None) -> bytes:
    """Return a document's bytes: a few paragraphs that name their document and version."""
    marker = {"refused": provider.REFUSED, "kills its worker": provider.KILLS}.get(poison or "", stamp)
    paragraphs = [
        f"Note {stamp} line {line}: {marker} "
        + " ".join(randomness.choices(_WORDS, k=randomness.randrange(8, 40)))
        + "."
        for line in range(randomness.choice((1, 2, 3, 3, 5, 12)))
    ]
    return "\n\n".join(paragraphs).encode()


@dataclass
class Traffic:
    """Lives the plans against the Storage API, repeating what was not answered with a yes."""

    stack: Stack
    accepted: list[Accepted] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    async def live(self, made: list[Plan]) -> None:
        """Return when every life is lived."""
        headers = {"authorization": f"Bearer {self.stack.secret_key}", "apikey": self.stack.secret_key}
        base = f"{self.stack.api_url}/storage/v1"
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=10) as http, asyncio.TaskGroup() as tasks:
            for plan in made:
                tasks.create_task(self._live(http, plan))

    async def _live(self, http: httpx.AsyncClient, plan: Plan) -> None:
        await asyncio.sleep(plan.begins)
        unanswered: list[bytes] = []
        for number, content in enumerate(plan.contents):
            tries = await self._send(
                http, "overwrite" if number else "upload", "POST", f"/object/{_path(plan.name)}",
                content=content, headers={"x-upsert": "true", "content-type": "text/plain"},
            )  # fmt: skip
            unanswered += [content] * (tries > 1)
            await asyncio.sleep(plan.pauses[number])
        name = plan.name
        if plan.moves_to is not None:
            await self._send(http, "move", "POST", "/object/move",
                             json={"bucketId": BUCKET, "sourceKey": name, "destinationKey": plan.moves_to})  # fmt: skip
            name = plan.moves_to
        await asyncio.sleep(plan.pauses[-1])
        if plan.deleted:
            await self._send(http, "delete", "DELETE", f"/object/{_path(name)}")
        self.accepted.append(Accepted(name, None if plan.deleted else plan.contents[-1], plan.poison, unanswered))

    async def _send(self, http: httpx.AsyncClient, what: str, method: str, path: str, **request: object) -> int:
        """Send until it is answered with a yes, and return how many tries that took."""
        unknown, tries = False, 0
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while True:
                    tries += 1
                    try:
                        answer = await http.request(method, path, **request)  # type: ignore[arg-type]
                    except httpx.HTTPError:
                        unknown = True
                    else:
                        # Gone already: an earlier try was carried out, and only its answer was lost.
                        if answer.is_success or (unknown and what in ("move", "delete") and "404" in answer.text):
                            self.done[what] += 1
                            return tries
                        if answer.status_code < 500 and "timeout" not in answer.text.lower():
                            self.done[f"{what} answered {answer.status_code}"] += 1
                            unknown = True
                        unknown = unknown or answer.status_code >= 500
                    await asyncio.sleep(0.2)
        except TimeoutError:
            self.refused.append(f"{what} {path}")
            return tries


def _path(name: str) -> str:
    return f"{BUCKET}/{quote(name)}"
