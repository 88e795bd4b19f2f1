"""PPTX: a page a slide, its title as the heading, text, tables and speaker notes below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from worker.pipeline.parse import markdown
from worker.pipeline.parse.draft import Draft, corrupt, needs_ocr
from worker.pipeline.parse.formats import package
from worker.pipeline.parse.formats.package import R_ID, Package

ERRORS = package.ERRORS

_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_TITLES = ("title", "ctrTitle")
_LEFT_OUT = ("dt", "ftr", "hdr", "sldNum", "sldImg")


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft from a presentation, hidden slides included, in the order in which slides are shown."""
    parts = Package(file)
    main = parts.main_part("ppt/presentation.xml")
    root = parts.tree(main)
    if root is None:
        raise corrupt("no presentation in the package")
    targets = parts.targets(main)
    slides = [slide.get(R_ID) or "" for slide in root.iter(f"{_P}sldId")]
    draft.check_pages(len(slides))
    draft.offer_title(parts.title() if parts.title() not in ("PowerPoint Presentation", "") else None)
    for reference in slides:
        name = targets.get(reference, ("", ""))[1]
        slide = parts.tree(name) if name else None
        if slide is None:
            draft.add_page("")
            draft.note(f"Slide {len(draft.pages)} is missing in the file")
            continue
        title, blocks = _slide(slide)
        draft.offer_title(title)
        noted = next((target for kind, target in parts.targets(name).values() if kind == "notesSlide"), None)
        notes = _notes(parts.tree(noted)) if noted is not None else ""
        draft.add_page(
            markdown.blocks([markdown.heading(1, title) if title else "", *blocks, f"Notes: {notes}" if notes else ""])
        )
    if not draft.pages:
        draft.add_page("")
    if not draft.has_text and parts.holds_pictures():
        raise needs_ocr()


def _slide(slide: etree._Element) -> tuple[str, list[str]]:
    """Return a slide's title and its other blocks, in the order of the file (the order of drawing)."""
    title = ""
    blocks: list[str] = []
    for shape in slide.iter(f"{_P}sp", f"{_A}tbl"):
        if shape.tag == f"{_A}tbl":
            blocks.append(markdown.table([_row(row) for row in shape.iterchildren(f"{_A}tr")]))
            continue
        kind = _placeholder(shape)
        if kind in _LEFT_OUT:
            continue
        if kind in _TITLES and not title:
            title = markdown.one_line(" ".join(text for _, text in _paragraphs(shape)))
            continue
        # The text of a body stands in bullets, whose marks the layout holds; that of a box does not.
        bullets = kind in ("body", "obj", "") and kind is not None
        lines = [(depth, text) for depth, text in _paragraphs(shape) if text and not text.isspace()]
        if bullets and len(lines) > 1:
            blocks.append("\n".join(markdown.item(depth, "-", text) for depth, text in lines))
        else:
            blocks.append("\n\n".join(markdown.plain(text.strip()) for _, text in lines))
    return title, blocks


def _notes(root: etree._Element | None) -> str:
    if root is None:
        return ""
    texts = [
        text
        for shape in root.iter(f"{_P}sp")
        if _placeholder(shape) == "body"
        for _, text in _paragraphs(shape)
        if text.strip()
    ]
    return markdown.plain("\n".join(texts))


def _placeholder(shape: etree._Element) -> str | None:
    """Return the kind of placeholder, "" for the unnamed kind (an object), None for a plain shape."""
    found = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph")
    return found.get("type", "") if found is not None else None


def _paragraphs(shape: etree._Element) -> Iterator[tuple[int, str]]:
    body = shape.find(f"{_P}txBody")
    for paragraph in body.iterchildren(f"{_A}p") if body is not None else ():
        properties = paragraph.find(f"{_A}pPr")
        level = properties.get("lvl", "0") if properties is not None else "0"
        yield int(level) if level.isdigit() and len(level) < 3 else 0, _text(paragraph)


def _text(paragraph: etree._Element) -> str:
    return "".join("\n" if node.tag == f"{_A}br" else node.text or "" for node in paragraph.iter(f"{_A}t", f"{_A}br"))


def _row(row: etree._Element) -> list[str]:
    cells = []
    for cell in row.iterchildren(f"{_A}tc"):
        hidden = cell.get("hMerge") in ("1", "true") or cell.get("vMerge") in ("1", "true")
        cells.append("" if hidden else " ".join(_text(paragraph) for paragraph in cell.iter(f"{_A}p")))
    return cells
