"""Which parser reads a file: cheap first, where the file's own text is good enough."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from worker.errors import Rejected, Transient
from worker.model import Claim, Parsed, ParseId, Source, TenantId
from worker.pipeline import filetype
from worker.pipeline.parse.local import MODULES
from worker.pipeline.parse.parser import JsonValue, Parser, Webhook

_PAGE_LETTERS = 40
"""A page with fewer is blank or a picture: a scanner's stamp and a page number stay below, one line does not."""
_TEXT_SHARE = 0.9
"""Of the pages: one cover in ten is let pass, one scanned page in five would be lost in silence."""
_GARBAGE_SHARE = 0.02
"""Of the characters: a font without a proper map gives whole lines of them."""
_GARBAGE = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]")
_LETTER = re.compile(r"\w")
# What no other parser may or could do better with.
_FINAL = frozenset({"pdf_encrypted", "too_many_pages"})


@dataclass(frozen=True, slots=True)
class Choice:
    """A parser for one file; `detail` says why in counts and codes, and is empty where there was no choice.

    `layer` is what the local parser has read for it already, None where it has not or could not.
    """

    parser: Parser
    detail: Mapping[str, JsonValue] = field(default_factory=dict)
    layer: Parsed | None = None


@dataclass(frozen=True, slots=True)
class Parsers:
    """The configured parser, and the local one beside it where that is remote and its libraries are there.

    `local` measures and compares; it reads files first only with `cheap_first`. Before a file is sent,
    `allow` may raise that the tenant must not spend more, and `webhook` says where the service shall call
    when this parse has ended.
    """

    main: Parser
    local: Parser | None = None
    cheap_first: bool = False
    allow: Callable[[TenantId], Awaitable[None]] | None = None
    webhook: Callable[[Claim, ParseId], Awaitable[Webhook]] | None = None

    async def choose(self, source: Source) -> Choice:
        """Return the parser for this file; raises Rejected for what none can read.

        A PDF is read whole by the local parser to measure it: what it found is the parse when it is good,
        and what the service's answer is compared with when it is not.
        """
        if not (self.cheap_first and self.main.remote and self.local is not None):
            return Choice(self.main)
        if source.mime_type != filetype.PDF:
            if source.mime_type in MODULES:
                return Choice(self.local, {"parser": self.local.name, "reason": "text_format"})
            return Choice(self.main, {"parser": self.main.name, "reason": "other_format"})
        try:
            layer = await read(self.local, source)
        except Rejected as exc:
            if exc.code in _FINAL:
                raise
            return Choice(self.main, {"parser": self.main.name, "reason": exc.code})
        except Transient as exc:
            return Choice(self.main, {"parser": self.main.name, "reason": exc.code})
        reason, counts = _judge(layer)
        chosen = self.local if reason == "text_layer" else self.main
        return Choice(chosen, {"parser": chosen.name, "reason": reason, **counts}, layer)


async def read(local: Parser, source: Source) -> Parsed:
    """Read a file with the local parser, in its sandboxed child; raises what it does."""
    parsed = await local.poll(await local.submit(source))
    assert parsed is not None
    return parsed


def _judge(layer: Parsed) -> tuple[str, dict[str, int]]:
    texts = [page.markdown for page in layer.pages]
    with_text = sum(_has_text(text) for text in texts)
    garbage = sum(len(_GARBAGE.findall(text)) for text in texts)
    counts = {"pages": len(texts), "text_pages": with_text, "garbage": garbage}
    if garbage > _GARBAGE_SHARE * sum(map(len, texts)):
        return "text_layer_garbled", counts
    return ("text_layer" if with_text >= _TEXT_SHARE * len(texts) else "text_layer_sparse"), counts


def _has_text(text: str) -> bool:
    return sum(1 for _ in zip(_LETTER.finditer(text), range(_PAGE_LETTERS), strict=False)) == _PAGE_LETTERS
