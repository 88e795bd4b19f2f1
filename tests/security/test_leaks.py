"""After a full run, logs and rows are searched for keys, tokens, signed URLs and the documents' text: there is none."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from docx import Document
from openpyxl import Workbook
from pptx import Presentation
from reportlab.pdfgen.canvas import Canvas

from local.stack import Stack
from local.worker_process import working
from tests import hostile
from tests.conftest import Counted
from tests.embeddings import KEY, PATH, answer, texts_of
from tests.openai_stack import SETTINGS, openai_stack
from tests.people import Person, Project
from tests.provider_double import ProviderDouble, Reply, Request

REFUSED = "REFUSEDBYPROVIDER"
# Where a document's text belongs.
TEXT = {
    "public.chunks": ["content", "context", "heading_path", "fts"],
    "public.pages": ["markdown"],
    "public.documents": ["title"],
    "ingest.parses": ["title"],
}
_TABLES = """
select quote_ident(n.nspname) || '.' || quote_ident(c.relname)
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'ingest', 'storage', 'realtime') and c.relkind in ('r', 'm') and not c.relispartition
    or n.nspname in ('public', 'ingest') and c.relkind = 'p'
"""


@pytest.fixture(scope="module")
async def stack(temporary_directory: Path) -> AsyncIterator[Stack]:
    """A stack of this module's own: all of its logs and rows are searched, and its active model is another one."""
    async with openai_stack(temporary_directory / "leak-stack") as running:
        yield running


def files(word: str) -> dict[str, bytes]:
    """Return good and bad files of every kind; all hold `word`, where errors like to quote."""
    out = {name: io.BytesIO() for name in ("pdf", "docx", "pptx", "xlsx")}
    canvas = Canvas(out["pdf"], pageCompression=0)
    canvas.drawString(72, 720, f"The {word} is at anchor.")
    canvas.save()
    document = Document()
    document.add_heading(word, 1)
    document.add_paragraph(f"The {word} is at anchor.")
    document.save(out["docx"])
    slides = Presentation()
    slides.slides.add_slide(slides.slide_layouts[0]).shapes.title.text = word
    slides.save(out["pptx"])
    book = Workbook()
    book.active.append([word, 1])
    book.save(out["xlsx"])
    good = {f"good.{kind}": file.getvalue() for kind, file in out.items()}
    paragraph = f"<w:p><w:r><w:t>{word}</w:t></w:r></w:p>"
    return good | {
        "good.md": f"# {word}\n\nThe {word} is at anchor.\n".encode(),
        "good.html": f"<!doctype html><title>{word}</title><p>{word}".encode(),
        "good.csv": f"name,{word}\n{word},1\n".encode(),
        "refused.md": f"# {REFUSED}\n\n{word} {REFUSED}\n".encode(),
        "cut.pdf": good["good.pdf"][: len(good["good.pdf"]) * 2 // 3],
        "broken xml.docx": hostile.docx(hostile.document(paragraph, f"<{word}>")),
        "entity.docx": hostile.docx(f"<!DOCTYPE d [<!ENTITY {word} '{word}'>]>" + hostile.document(f"&{word};")),
        "missing part.docx": hostile.package({f"word/{word}.xml": word, "[Content_Types].xml": word}),
        "no number.xlsx": hostile.xlsx(hostile.worksheet(f'<row r="{word}"><c r="{word}"><v>{word}</v></c></row>')),
        "no string.xlsx": hostile.xlsx(hostile.worksheet(f'<row r="1"><c r="A1" t="s"><v>{word}</v></c></row>')),
        "deep.html": f"<p>{word}</p>".encode() + hostile.deep_html(),
        "program.bin": bytes(range(256)) * 40 + word.encode(),
    }


@dataclass
class Searched:
    """What of the logs and rows held a word; `places` counts them all."""

    found: list[str]
    places: int = 0


async def search(connection: asyncpg.Connection, logs: list[Path], words: list[str], *, text: bool) -> Searched:
    """Look for the words in every line and every column; with `text` not where a document's text belongs."""
    searched = Searched([])
    for log in logs:
        lines = log.read_text(errors="replace").lower().splitlines()
        searched.places += len(lines)
        searched.found += [f"{log.name}: {line[:300]}" for line in lines if any(word.lower() in line for word in words)]
    for (table,) in await connection.fetch(_TABLES):
        own: list[str] = TEXT.get(table, []) if text else []
        rows = await connection.fetch(
            "select row, exists (select from unnest($1::text[]) w where strpos(lower(row), lower(w)) > 0) as holds"
            f" from (select (to_jsonb(t) - $2::text[])::text as row from {table} t) r",
            words, own,
        )  # fmt: skip
        searched.places += len(rows)
        searched.found += [f"{table}: {row['row'][:300]}" for row in rows if row["holds"]]
    return searched


async def keys_and_tokens(stack: Stack, person: Person) -> list[str]:
    """Everything that opens something: the stack's, the provider's and the person's, and the tokens of signed URLs."""
    session = await person.client.auth.get_session()
    assert session is not None
    bucket = person.client.storage.from_("documents")
    down = await bucket.create_signed_url(f"{person.folder}/good.md", 3600)
    up = await bucket.create_signed_upload_url(f"{person.folder}/later.md")
    return [
        stack.secret_key, stack.jwt_secret, KEY, *stack.secrets.passwords.values(), session.access_token,
        session.refresh_token, down["signedURL"].split("token=")[1], up["token"],
    ]  # fmt: skip


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_neither_logs_nor_rows_hold_a_key_a_token_or_a_documents_text(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, level: str, counted: Counted
) -> None:
    word, log = f"Canary{uuid4().hex}", temporary_directory / f"leaks-{level}.log"
    failing = [True]

    def echo(request: Request) -> Reply:
        """Quote text and key in an error, as providers do; the first request fails for no reason."""
        said = f"Incorrect API key {request.headers['authorization']}; input: {' '.join(texts_of([request]))}"
        error = {"error": {"message": said, "type": "invalid_request_error", "code": None, "param": said}}
        if failing.pop() if failing else False:
            return Reply(500, error)
        return Reply(400, error) if any(REFUSED in text for text in texts_of([request])) else answer(request)

    made = files(word)
    async with ProviderDouble() as double:
        double.on("POST", PATH, echo)
        double.aside("GET", "/v1/models/*", Reply(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}))
        async with working(stack, log, **SETTINGS, SLUICE_LOG_LEVEL=level, OPENAI_BASE_URL=f"{double.url}/v1"):
            paths = [await ada.upload(name, content) for name, content in made.items()]
            ended = [await project.settled(path) for path in paths]
            secrets = await keys_and_tokens(stack, ada)

    states = {row["name"].split("/")[-1]: row["state"] for row in ended}
    assert {name for name, state in states.items() if state == "ready"} >= {n for n in made if n.startswith("good")}
    assert {states["refused.md"], states["cut.pdf"], states["broken xml.docx"]} == {"failed"}

    admin = await asyncpg.connect(stack.admin_url)
    logs = [log, stack.server.log, stack.cluster.log]
    assert len(log.read_text().splitlines()) > len(made)
    texts = await search(admin, logs, [word, REFUSED], text=True)
    everywhere = await search(admin, [log], [word], text=False)
    keys = await search(admin, logs, [*secrets, "token=ey"], text=False)
    await admin.close()

    assert texts.found == []
    assert keys.found == []
    # The search finds what is there: the chunks hold the word.
    assert len(everywhere.found) > len(made)
    counted("lines and rows searched for text", texts.places)
    counted("lines and rows searched for keys and tokens", keys.places)
