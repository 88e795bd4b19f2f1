"""An independent reader of the PDFs: what the parsed pages are compared with, and where the search's passage is from.

It shares no code with the local parser (pypdf here, PDFium there), and runs in a child process: 232 pages take it
15 seconds of one core, meanwhile the target works.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.errors import Transient

DOCUMENT_RECALL = 0.95
"""Of all words that the reader finds, this share must stand on the parsed pages."""
PAGE_RECALL = 0.8
"""The same for each page that has enough words to judge by."""
FEWEST_WORDS = 20

_SECONDS = 300
_WORD = re.compile(r"[^\W\d_]{3,}|\d+")
_EDGE = 3
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_LENGTHS = range(8, 31)


@dataclass(frozen=True, slots=True)
class Recall:
    """Which share of the reader's words stands on the parsed pages, over all, and on pages below the bound."""

    document: float
    low_pages: list[int]
    lowest: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A sentence that the reader found, and the page on which it stands."""

    page: int
    text: str


async def read_pages(path: Path) -> list[str]:
    """Return the text of each page, in a child that ends with this call; raises Transient when it cannot."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, str(path), stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(process.communicate(), _SECONDS)
    except TimeoutError:
        out = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Transient("reader_failed", f"{path.name} could not be read by the independent reader (pypdf).")
    pages: list[str] = json.loads(out)
    return pages


def words(text: str) -> Counter[str]:
    """Return the words of three letters and more, and the numbers, without case, counted."""
    return Counter(_WORD.findall(text.casefold()))


def without_running_heads(pages: Sequence[str]) -> list[str]:
    """Drop lines at a page's head or foot that repeat: parsers leave them out, rightly.

    A line repeats when it stands, its numbers aside, among the first or last three of a twentieth of all pages,
    and of three at least.
    """
    lines = [[line for line in page.splitlines() if line.strip()] for page in pages]
    seen = Counter(mask for page in lines for mask in {_mask(line) for line in (*page[:_EDGE], *page[-_EDGE:])})
    heads = {mask for mask, count in seen.items() if count >= max(3, len(pages) // 20)}
    return [
        "\n".join(
            line for number, line in enumerate(page) if _EDGE <= number < len(page) - _EDGE or _mask(line) not in heads
        )
        for page in lines
    ]


def recall(read: Sequence[str], parsed: Sequence[str]) -> Recall:
    """Compare page by page; `read` is without running heads. Repetition counts, order and layout do not."""
    found = total = 0
    low, lowest = [], 1.0
    for number, (mine, theirs) in enumerate(zip(read, parsed, strict=True), 1):
        wanted = words(mine)
        here = (wanted & words(theirs)).total()
        found, total = found + here, total + wanted.total()
        if wanted.total() >= FEWEST_WORDS:
            share = here / wanted.total()
            lowest = min(lowest, share)
            if share < PAGE_RECALL:
                low.append(number)
    return Recall(found / total if total else 0.0, low, lowest)


def passage(read: Sequence[str]) -> Passage | None:
    """Choose what to search for, by a rule that knows nothing of search; `read` is without running heads.

    Of the page nearest to the middle that has sentences of 8 to 30 words, the sentence whose words are rarest in the
    document: the sum over its different words of 1 over the pages that have the word. Of equals the first.
    """
    pages_with = Counter(word for page in read for word in words(page))
    middle = len(read) // 2
    for index in sorted(range(len(read)), key=lambda index: (abs(index - middle), index)):
        sentences = [" ".join(text.split()) for text in _SENTENCE.split(read[index])]
        fitting = [text for text in sentences if len(text.split()) in _LENGTHS and len(text) <= 400]
        if fitting:
            best = max(fitting, key=lambda text: sum(1 / pages_with[word] for word in words(text)))
            return Passage(index + 1, best)
    return None


def _mask(line: str) -> str:
    return re.sub(r"\d+", "#", " ".join(line.split()))


def _main() -> None:
    from pypdf import PdfReader  # only the child needs it

    json.dump([page.extract_text() for page in PdfReader(sys.argv[1]).pages], sys.stdout)


if __name__ == "__main__":
    _main()
