"""Where a block that is too large is cut: at the best seam its kind has, and only then at a worse one.

Prose falls apart into list items, then sentences, then lines; code into stanzas, then lines; a table
into rows. What is still too large is cut between words, at last anywhere. The parts are then put
together again into groups of about equal cost, so that no crumb is left at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil

from worker.pipeline.blocks import Block, Kind
from worker.pipeline.tokens import Ruler

_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]{0,3}\s++(?=[^a-z])|[。！？]")
_LINE = re.compile(r"\n")
_SEAMS: dict[Kind, tuple[re.Pattern[str], ...]] = {
    "prose": (re.compile(r"\n(?=[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t])|\n[ \t]*\n"), _SENTENCE, _LINE),
    "heading": (_SENTENCE,),
    "code": (re.compile(r"\n[ \t]*\n"), _LINE),
    "table": (_LINE,),
}
_LEVELS = max(len(seams) for seams in _SEAMS.values())
CRUMB = 4
"""Seams closer than a quarter of the room, in code points, count as one."""


@dataclass(slots=True)
class Part:
    """Code points [start, end) of the text and their cost."""

    start: int
    end: int
    cost: int


@dataclass(slots=True)
class Job:
    """A block, its cost, and the room that each of its parts has."""

    block: Block
    cost: int
    room: int


def split(ruler: Ruler, jobs: Sequence[Job]) -> list[list[Part]]:
    """Return each block's parts: itself where it fits, else parts that fit and together cover it.

    All blocks are cut side by side, so that every level is counted in one call.
    """
    parts = [[Part(job.block.start, job.block.end, job.cost)] for job in jobs]
    if all(job.cost <= job.room for job in jobs):
        return parts
    for level in range(_LEVELS):
        _cut(ruler, jobs, parts, partial(_at_seams, ruler.text, level))
    _cut(ruler, jobs, parts, partial(_between_words, ruler.text))
    while _cut(ruler, jobs, parts, _in_half):
        pass
    return [_grouped(found, job.room) for found, job in zip(parts, jobs, strict=True)]


def _cut(ruler: Ruler, jobs: Sequence[Job], parts: list[list[Part]], cuts: Callable[[Job, Part], list[int]]) -> bool:
    """Replace every part that is too large by what these cuts leave of it; says whether there was one."""
    smaller: dict[int, list[tuple[int, int]]] = {}  # by the position of the part that they replace
    for job, found in zip(jobs, parts, strict=True):
        for part in found:
            if part.cost > job.room and part.end - part.start > 1:
                smaller[part.start] = list(pairwise([part.start, *cuts(job, part), part.end]))
    if not smaller:
        return False
    spans = [span for group in smaller.values() for span in group]
    costs = dict(zip(spans, ruler.costs(spans), strict=True))
    for number, found in enumerate(parts):
        if any(part.start in smaller for part in found):
            parts[number] = [
                Part(start, end, costs.get((start, end), part.cost))
                for part in found
                for start, end in smaller.get(part.start, [(part.start, part.end)])
            ]
    return True


def _at_seams(text: str, level: int, job: Job, part: Part) -> list[int]:
    """Where the seams of a level lie; some are passed over, so that a million crumbs do not come of one block."""
    seams = _SEAMS[job.block.kind]
    if level >= len(seams):
        return []
    ends = [seam.end() for seam in seams[level].finditer(text, part.start, part.end)]
    found, last = [], part.start
    for end in ends:
        if end - last >= job.room // CRUMB and end < part.end:
            found.append(end)
            last = end
    return found


def _between_words(text: str, job: Job, part: Part) -> list[int]:
    """Cuts about every half room of code points, behind a blank where there is one.

    A code point is seldom more than a token, and what still does not fit is halved.
    """
    width = max(1, job.room // 2)
    found, here = [], part.start
    while here + width < part.end:
        blank = max(text.rfind(mark, here + width // 2, here + width) for mark in (" ", "\t", "\n"))
        here = blank + 1 if blank >= 0 else here + width
        found.append(here)
    return found


def _in_half(_: Job, part: Part) -> list[int]:
    return [(part.start + part.end) // 2]


def _grouped(parts: list[Part], room: int) -> list[Part]:
    """Put parts together into as few groups as fit, all of about the same cost."""
    total = sum(part.cost for part in parts)
    share = total / max(1, ceil(total / room))
    groups: list[Part] = []
    done = 0  # what all groups cost but the open one
    for part in parts:
        if groups:
            last = groups[-1]
            together = last.cost + part.cost
            if together <= room and done + last.cost + part.cost / 2 <= share * len(groups):
                groups[-1] = Part(last.start, part.end, together)
                continue
            done += last.cost
        groups.append(part)
    return groups
