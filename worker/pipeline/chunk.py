"""Pages become chunks: slices that respect headings, tables, code and sentences, bounded in tokens.

    blocks   the Markdown of every page, each block with the headings in force above it
    pieces   a block that fits stays whole, a larger one is cut at its best seams into equal parts;
             headings are joined to what stands below them, so that none ends a chunk
    packed   pieces in order; a heading or a new page begins a chunk once the last has some substance
    checked  every chunk counted as it will be embedded, and halved where the sum of its parts deceived

It runs as a stream, a batch of blocks at a time, because texts are counted fastest in bulk and a
document may have millions of lines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from worker.model import PAGE_SEPARATOR, Chunk, Page
from worker.pipeline.blocks import Block, blocks
from worker.pipeline.seams import Job, split
from worker.pipeline.tokens import Context, CountTokens, Ruler, cells

SUBSTANCE = 3
"""From a third of the limit on, a chunk ends before a heading or a new page rather than run on."""
LEAD_SHARE = 4
"""Headings at a chunk's top may take a quarter of the limit; longer ones are cut as paragraphs are."""
BATCH = 2000
"""Blocks or chunks counted in one call; more gains nothing."""

T = TypeVar("T")


# Neither is frozen: that makes each three times as dear to make, and a document makes dozens.
@dataclass(slots=True)
class _Placed:
    """A block with the headings above it and, for a heading, itself in `path`; its cost comes later."""

    block: Block
    above: tuple[str, ...]
    path: tuple[str, ...]
    first_on_page: bool
    cost: int = 0


@dataclass(slots=True)
class _Piece:
    """A slice that may be a chunk by itself.

    `above` stands over a chunk that begins here; `path` are the headings over all of its words;
    `fresh` says that a chunk rather begins here than runs on.
    """

    start: int
    end: int
    cost: int
    above: Context
    path: tuple[str, ...]
    fresh: bool = False

    def joined(self, other: _Piece) -> _Piece:
        path = self.path
        if path != other.path:
            same = [mine == its for mine, its in zip(path, other.path, strict=False)]
            path = path[: (*same, False).index(False)]
        return _Piece(self.start, other.end, self.cost + other.cost, self.above, path, self.fresh)


def chunk(pages: Sequence[Page], *, count_tokens: CountTokens, max_tokens: int) -> list[Chunk]:
    """Cut a document into chunks of at most `max_tokens`, context and special tokens included.

    Chunks do not overlap, and every character of the text that is not blank is in one of them. Blocks
    on the processor (about a second a megabyte): call it in a thread. Raises ValueError for a limit
    too small to hold a character and its headings.
    """
    text = PAGE_SEPARATOR.join(page.markdown for page in pages)
    ruler = Ruler(text, count_tokens, max_tokens)
    starts = [0]
    for page in pages:
        starts.append(starts[-1] + len(page.markdown) + len(PAGE_SEPARATOR))
    placed = _place(text, starts)
    pieces = (piece for batch in _batches(_entries(_measured(placed, ruler), ruler)) for piece in _cut(batch, ruler))
    made = _checked(_packed(pieces, ruler), ruler, lambda piece: _slice(text, pages, starts, piece))
    return [replace(each, ordinal=ordinal, token_count=tokens) for ordinal, (each, tokens) in enumerate(made)]


def _slice(text: str, pages: Sequence[Page], starts: Sequence[int], piece: _Piece) -> Chunk | None:
    """The chunk of a piece, without the blanks around it and not counted yet; None where there is nothing else."""
    content = text[piece.start : piece.end]
    lines = content.lstrip()
    # The first line keeps its indentation: it is code, or a list inside a list.
    start = content.rfind("\n", 0, len(content) - len(lines)) + 1
    content = content[start:].rstrip()
    if not content:
        return None
    start += piece.start
    end = start + len(content)
    first, last = (bisect_right(starts, place) - 1 for place in (start, end - 1))
    return Chunk(
        ordinal=0,
        page_start=pages[first].number,
        page_end=pages[last].number,
        char_start=start,
        char_end=end,
        heading_path=piece.path,
        context=piece.above.text,
        content=content,
        token_count=0,
    )


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    yield batch


def _place(text: str, starts: Sequence[int]) -> Iterator[_Placed]:
    """Walk through all pages' blocks and keep the headings in force; they outlive their page."""
    open_headings: list[Block] = []
    for start, after in pairwise(starts):
        for number, block in enumerate(blocks(text, start, after - len(PAGE_SEPARATOR))):
            if block.kind == "heading":
                while open_headings and open_headings[-1].level >= block.level:
                    open_headings.pop()
            above = path = tuple(heading.title for heading in open_headings)
            if block.kind == "heading":
                open_headings.append(block)
                path = (*above, block.title)
            yield _Placed(block, above, path, first_on_page=number == 0)


def _measured(placed: Iterable[_Placed], ruler: Ruler) -> Iterator[_Placed]:
    for batch in _batches(placed):
        heads = {item.block.head for item in batch}
        ruler.learn([*(item.block.title for item in batch), *(cell for head in heads for cell in cells(head))])
        costs = ruler.costs([(item.block.start, item.block.end) for item in batch])
        for item, cost in zip(batch, costs, strict=True):
            item.cost = cost
            yield item


def _entries(measured: Iterable[_Placed], ruler: Ruler) -> Iterator[list[_Placed]]:
    """Join each run of headings to the block below it.

    A run that leaves that block too little room is an entry of its own; so is a document's last
    heading, with nothing below it.
    """
    run: list[_Placed] = []
    spent = 0
    for item in measured:
        if item.block.kind != "heading":
            yield [*run, item]
            run, spent = [], 0
            continue
        if run and spent + item.cost > ruler.limit // LEAD_SHARE:
            yield run
            run, spent = [], 0
        run.append(item)
        spent += item.cost
        if spent > ruler.limit // LEAD_SHARE:
            yield run
            run, spent = [], 0
    if run:
        yield run


def _cut(entries: Sequence[list[_Placed]], ruler: Ruler) -> Iterator[_Piece]:
    """Turn entries into pieces, cutting the blocks that do not fit under their headings."""
    jobs = [_job(entry, ruler) for entry in entries]
    for entry, job, parts in zip(entries, jobs, split(ruler, jobs), strict=True):
        first, body = entry[0], entry[-1]
        for number, part in enumerate(parts):
            if number:
                yield _Piece(part.start, part.end, part.cost, ruler.context(body.path, body.block.head), body.path)
            else:
                fresh = first.first_on_page or first.block.kind == "heading"
                cost = sum(item.cost for item in entry) - job.cost + part.cost
                yield _Piece(first.block.start, part.end, cost, ruler.context(first.above), body.path, fresh)


def _job(entry: list[_Placed], ruler: Ruler) -> Job:
    """What is to be cut of an entry; a part must fit below its own headings, and also later, below their repetition."""
    first, body = entry[0], entry[-1]
    free = ruler.limit - sum(item.cost for item in entry[:-1])
    whole = free - ruler.context(first.above).cost
    if body.cost <= whole:
        return Job(body.block, body.cost, max(1, whole))
    return Job(body.block, body.cost, max(1, min(whole, free - ruler.context(body.path, body.block.head).cost)))


def _packed(pieces: Iterable[_Piece], ruler: Ruler) -> Iterator[_Piece]:
    substance = ruler.limit // SUBSTANCE
    closed: _Piece | None = None
    current: _Piece | None = None
    for piece in pieces:
        if current is None:
            current = piece
        elif ruler.fits(current.above, current.cost + piece.cost) and not (piece.fresh and current.cost >= substance):
            current = current.joined(piece)
        else:
            # A scrap that could not grow goes back to the chunk before it where that has room.
            if closed and current.cost < substance and ruler.fits(closed.above, closed.cost + current.cost):
                closed = closed.joined(current)
            else:
                if closed:
                    yield closed
                closed = current
            current = piece
    if closed and current and current.cost < substance and ruler.fits(closed.above, closed.cost + current.cost):
        closed, current = closed.joined(current), None
    yield from (piece for piece in (closed, current) if piece)


def _checked(
    packed: Iterable[_Piece], ruler: Ruler, make: Callable[[_Piece], Chunk | None]
) -> Iterator[tuple[Chunk, int]]:
    """Make and count the chunks, each with its context, and halve those that are over the limit after all."""
    for batch in _batches(packed):
        made = [(piece, found) for piece in batch if (found := make(piece))]
        counts = ruler.count([found.embedding_text for _, found in made])
        for (piece, found), tokens in zip(made, counts, strict=True):
            if tokens <= ruler.max_tokens:
                yield found, tokens
            elif (length := piece.end - piece.start) > 1:
                middle = piece.start + length // 2
                below = ruler.context(piece.path) if piece.above.text else piece.above
                halves = replace(piece, end=middle), replace(piece, start=middle, above=below)
                yield from _checked(halves, ruler, make)
            elif piece.above.text:
                yield from _checked([replace(piece, above=Context("", 0))], ruler, make)
            else:
                raise ValueError(f"A single character takes {tokens} tokens, over the limit of {ruler.max_tokens}.")
