"""Text that breaks databases, indexes and eyes goes through the whole pipeline, and every chunk is a slice of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from local.stack import Stack
from local.worker_process import working
from tests.conftest import Counted
from tests.people import Person, Project

MB = 1024 * 1024
LONG = "The tide turns. " * (10 * MB // 16)
# A file of a few letters and as many zeros is taken for a program.
PROSE = b"It was a quiet morning on the quay, and the ledger was open. " * 4
# What is uploaded, and words that must be found in its chunks.
TEXTS: dict[str, tuple[bytes, list[str]]] = {
    "nul.md": (b"# Log\n\n" + PROSE + b"The gate\0 opened\0\0 at noon.\n", ["The gate", "at noon"]),
    "surrogates.md": (b"# Log\n\nThen \xed\xa0\x80 it \xed\xb0\x80 closed.\n", ["Then", "closed"]),
    "bidi.md": ("# Log\n\nPay \u202egnp.exe\u202c and \u2066hidden\u2069 \u200fnow\u200e.\n".encode(), ["Pay", "now"]),
    "no characters.md": ("# Log\n\nA \ufffe \uffff \ufdd0 \U0001ffff B\n".encode(), ["A", "B"]),
    "controls.md": (b"# Log\n\n" + 9 * PROSE + bytes({*range(1, 32)} - {10, 13}) + b"after\x7f\n", ["after"]),
    "separators.md": ("# Log\n\none\u2028two\u2029three\u0085four\n".encode(), ["one", "four"]),
    "composed.md": ("# Log\n\nU\u0308bung macht\n".encode(), ["bung macht"]),
    "heaps of marks.md": (("# Log\n\nz" + "\u0301\u0327\u0336" * 5000 + " end\n").encode(), ["end"]),
    "emoji.md": ("# Log\n\n\U0001f468\u200d\U0001f469\u200d\U0001f467 family\n".encode(), ["family"]),
    "mark first.md": (b"\xef\xbb\xbf# Log\n\nmarked text\n", ["marked text"]),
    "sixteen.txt": ("Sixteen bits of text, and more of it.".encode("utf-16"), ["Sixteen bits"]),
    "broken.md": (b"# Log\n\nbad \xff\xfe\xc3( bytes\n", ["bytes"]),
    "json.md": (b'# Log\n\n{"a": "\\u0000", "b": "\\ud800"} stays\n', ["stays", "u0000"]),
    "sql.md": (b"# Log\n\n'); drop table public.chunks; -- $$ %I \\. \\N\n\tcopied\n", ["drop table", "copied"]),
    "one line of 10 MB.txt": (LONG.encode(), ["The tide turns."]),
}  # fmt: skip


@pytest.mark.timeout(240)
async def test_every_text_becomes_chunks_that_are_slices_of_it(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, counted: Counted
) -> None:
    paths = {name: await ada.upload(name, content) for name, (content, _) in TEXTS.items()}
    ended = {}
    async with working(stack, temporary_directory / "text-worker.log"):
        for name, path in paths.items():
            ended[name] = await project.settled(path, seconds=150)

    assert {name: (row["state"], row["error_code"]) for name, row in ended.items()} == dict.fromkeys(
        TEXTS, ("ready", None)
    )
    for name, row in ended.items():
        pages = await project.connection.fetch(
            "select markdown from public.pages where parse_id = $1 order by page", row["published_parse_id"]
        )
        chunks = await project.connection.fetch(
            "select char_start, char_end, content from public.chunks where document_id = $1 order by ordinal", row["id"]
        )
        text = "\n\n".join(page["markdown"] for page in pages)
        assert "\0" not in text
        assert [text[chunk["char_start"] : chunk["char_end"]] == chunk["content"] for chunk in chunks] == [True] * len(
            chunks
        ), name
        content = " ".join(chunk["content"] for chunk in chunks)
        assert all(words in content for words in TEXTS[name][1]), (name, content[:200])
        assert len(chunks) == row["chunk_count"]
    assert ended["one line of 10 MB.txt"]["size"] == len(LONG)
    counted("hostile texts", len(TEXTS))
