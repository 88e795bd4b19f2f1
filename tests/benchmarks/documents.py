"""Workload W1: 500 Markdown documents, the same for the same numbers, about 2,042 cl100k tokens each.

Headings, paragraphs, lists, a table and a block of code here and there; no two documents share a paragraph, so that
nothing is embedded already.
"""

from __future__ import annotations

import random

SEED = 1000
DOCUMENTS = 500
_WORDS = 1_400  # before headings, punctuation and numbers; about 2,042 tokens with them
_SPREAD = 260

_COMMON = (
    "the", "of", "and", "a", "to", "in", "is", "for", "that", "with", "on", "as", "by", "at", "from", "or", "are", "be",
    "its", "each", "after", "before", "under", "over", "between", "when", "until", "where",
)  # fmt: skip
_RARE = (
    "anchor", "ballast", "basin", "beacon", "berth", "bollard", "boundary", "breakwater", "buoy", "cable",
    "capacity", "cargo", "certificate", "channel", "clearance", "coating", "container", "contract", "crane",
    "current", "customs", "damage", "delivery", "demurrage", "departure", "dredger", "draught", "engine",
    "estimate", "examination", "fender", "ferry", "foundation", "freight", "gauge", "gradient", "hazard",
    "hydraulic", "inspection", "insurance", "invoice", "jetty", "junction", "keel", "laboratory", "lantern",
    "liability", "lighthouse", "maintenance", "manifest", "margin", "measurement", "mooring", "navigation",
    "notice", "observation", "operator", "passage", "payment", "permission", "pilotage", "platform", "pressure",
    "procedure", "quarantine", "quay", "radar", "regulation", "replacement", "rescue", "reservoir", "rudder",
    "salinity", "salvage", "schedule", "sediment", "shelter", "signal", "slipway", "stability", "storage",
    "supervision", "surveyor", "tariff", "temperature", "terminal", "threshold", "timber", "tonnage", "towage",
    "transfer", "tunnel", "turbine", "valve", "ventilation", "vessel", "visibility", "warehouse", "wharf",
    "windlass",
)  # fmt: skip


def document(number: int) -> str:
    """Return the Markdown of document `number`."""
    chance = random.Random(SEED + number)
    left = max(300, round(chance.gauss(_WORDS, _SPREAD)))
    parts = [f"# {_title(chance)} {number}"]
    while left > 0:
        parts.append(f"{'#' * chance.choice((2, 2, 3))} {_title(chance)}")
        for _ in range(chance.randint(3, 7)):
            block, words = _block(chance)
            parts.append(block)
            left -= words
    return "\n\n".join(parts) + "\n"


def _block(chance: random.Random) -> tuple[str, int]:
    kind = chance.random()
    if kind < 0.80:
        sentences = [_sentence(chance) for _ in range(chance.randint(3, 6))]
        text = " ".join(sentences)
    elif kind < 0.90:
        text = "\n".join(f"- {_sentence(chance)}" for _ in range(chance.randint(3, 6)))
    elif kind < 0.96:
        rows = [[chance.choice(_RARE), str(chance.randint(1, 9999)), chance.choice(_RARE)] for _ in range(6)]
        rows = [["item", "count", "place"], ["---"] * 3, *rows]
        text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    else:
        lines = [f"{chance.choice(_RARE)}.{chance.choice(_RARE)} = {chance.randint(0, 99999)}" for _ in range(6)]
        text = "\n".join(["```", *lines, "```"])
    return text, len(text.split())


def _sentence(chance: random.Random) -> str:
    words = [chance.choice(_COMMON if chance.random() < 0.45 else _RARE) for _ in range(chance.randint(8, 18))]
    if chance.random() < 0.2:
        words.insert(chance.randrange(1, len(words)), str(chance.randint(2, 99999)))
    if len(words) > 12:
        words[5] += ","
    return " ".join(words).capitalize() + "."


def _title(chance: random.Random) -> str:
    return " ".join(chance.choices(_RARE, k=chance.randint(1, 3))).capitalize()
