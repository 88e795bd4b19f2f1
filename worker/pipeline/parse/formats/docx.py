"""DOCX: headings, lists with their numbers, tables and notes as Markdown; pages where the file says so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from worker.pipeline.parse import markdown
from worker.pipeline.parse.draft import Draft, corrupt, needs_ocr
from worker.pipeline.parse.formats import package
from worker.pipeline.parse.formats.docx_numbering import Numbering
from worker.pipeline.parse.formats.docx_styles import Styles
from worker.pipeline.parse.formats.package import Package

ERRORS = package.ERRORS

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
# What stands around blocks and runs without being one; deleted text is not among it.
_WRAPPERS = frozenset(
    f"{W}{name}" for name in ("sdt", "sdtContent", "customXml", "ins", "moveTo", "smartTag", "hyperlink", "fldSimple")
)
_MAX_DEPTH = 40
_BREAK = "\f"
_RENDERED = "\v"


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft from a Word document.

    Word notes where its pages ended when it last saved; other programs write explicit breaks only, and a
    file without either is one page.
    """
    parts = Package(file)
    main = parts.main_part("word/document.xml")
    root = parts.tree(main)
    body = root.find(f"{W}body") if root is not None else None
    if body is None:
        raise corrupt("no body in the document")
    targets = dict(parts.targets(main).values())
    styles = Styles(parts.tree(targets.get("styles", "word/styles.xml")))
    numbering = Numbering(parts.tree(targets.get("numbering", "word/numbering.xml")))
    writer = _Writer(draft, styles, numbering)
    draft.offer_title(parts.title())
    writer.write(body)
    for kind in ("footnotes", "endnotes"):
        writer.write_notes(parts.tree(targets[kind]) if kind in targets else None)
    writer.end_page()
    if not draft.has_text and parts.holds_pictures():
        raise needs_ocr()


class _Writer:
    """Writes blocks onto pages; a page ends where a break stands."""

    def __init__(self, draft: Draft, styles: Styles, numbering: Numbering) -> None:
        self._draft = draft
        self._styles = styles
        self._numbering = numbering
        self._blocks: list[str] = []
        self._in_list = False
        self._fresh = True  # nothing has been written since the last break

    def write(self, body: etree._Element) -> None:
        """Write every block of the body, and of what wraps blocks."""
        for block in _unwrapped(body):
            if block.tag == f"{W}p":
                self._paragraph(block)
            elif block.tag == f"{W}tbl":
                self._table(block)

    def write_notes(self, root: etree._Element | None) -> None:
        """Write foot- or endnotes, which belong to no page that the file names, onto the last one."""
        for note in root if root is not None else ():
            if isinstance(note.tag, str) and note.get(f"{W}type") in (None, "normal"):
                text = markdown.one_line(" ".join(_text(p) for p in note.iter(f"{W}p")).replace(_RENDERED, ""))
                if text:
                    self._add(markdown.plain(f"[{note.get(f'{W}id')}] {text}"), listed=False)

    def end_page(self) -> None:
        """Keep what has been written as a page."""
        self._draft.add_page("".join(self._blocks))
        self._blocks = []
        self._in_list = False
        self._fresh = True

    def _paragraph(self, paragraph: etree._Element) -> None:
        properties = paragraph.find(f"{W}pPr")
        style = self._styles.of(properties)
        if _switched_on(properties, "pageBreakBefore") and not (self._fresh and self._draft.pages):
            self._break()
        level = style.outline if style.outline is not None else 0
        label = self._numbering.label(properties, style.numbering)
        for number, piece in enumerate(_pieces(_text(paragraph))):
            if number:
                # Word repeats an explicit break as a rendered one right behind it: the same page's end.
                if piece.explicit or not self._fresh:
                    self._break()
                label = None
            self._piece(piece.text, level, label)
        section = properties.find(f"{W}sectPr") if properties is not None else None
        if section is not None:
            kind = section.find(f"{W}type")
            if kind is None or kind.get(f"{W}val") in (None, "nextPage", "oddPage", "evenPage"):
                self._break()

    def _piece(self, text: str, level: int, label: tuple[int, str] | None) -> None:
        if not text or text.isspace():
            return
        if level:
            title = markdown.one_line(text)
            self._draft.offer_title(title)
            numbered = f"{label[1]} {title}" if label is not None and label[1] != "-" else title
            self._add(markdown.heading(level, numbered), listed=False)
        elif label is not None:
            self._add(markdown.item(label[0], label[1], text), listed=True)
        else:
            self._add(markdown.plain(text.strip()), listed=False)

    def _table(self, table: etree._Element) -> None:
        rows: list[list[str]] = []
        header: list[str] | None = None
        for row in _unwrapped(table):
            if row.tag != f"{W}tr":
                continue
            cells, broken = _cells(row)
            if broken and rows:
                self._add(markdown.table(rows), listed=False)
                self._break()
                rows = [header] if header is not None and len(rows) > 1 else []
            if header is None:
                header = cells
            rows.append(cells)
        self._add(markdown.table([cells for cells in rows if any(cells)]), listed=False)

    def _add(self, block: str, *, listed: bool) -> None:
        if not block:
            return
        if self._blocks:
            self._blocks.append("\n" if listed and self._in_list else "\n\n")
        self._blocks.append(block)
        self._draft.expect(len(block))
        self._in_list = listed
        self._fresh = False

    def _break(self) -> None:
        self.end_page()


class _Piece:
    def __init__(self, text: str, explicit: bool) -> None:
        self.text = text
        self.explicit = explicit


def _pieces(text: str) -> Iterator[_Piece]:
    """Cut a paragraph's text at its page breaks; `explicit` says how the cut before a piece was made."""
    start, explicit = 0, False
    for at, char in enumerate(text):
        if char in (_BREAK, _RENDERED):
            yield _Piece(text[start:at], explicit)
            start, explicit = at + 1, char == _BREAK
    yield _Piece(text[start:], explicit)


def _unwrapped(parent: etree._Element, depth: int = 0) -> Iterator[etree._Element]:
    for child in parent:
        if child.tag in _WRAPPERS and depth < _MAX_DEPTH:
            yield from _unwrapped(child, depth + 1)
        else:
            yield child


def _text(element: etree._Element) -> str:
    """Return an element's text as it is shown, with page breaks as form feeds (explicit) and \\v (rendered)."""
    out: list[str] = []
    skipped: etree._Element | None = None
    for event, node in etree.iterwalk(element, events=("start", "end")):
        if skipped is not None:
            if event == "end" and node is skipped:
                skipped = None
            continue
        if event == "end":
            # Paragraphs inside: a text box, or a note.
            if node.tag == f"{W}p" and node is not element:
                out.append("\n")
            continue
        match node.tag:
            case t if t == f"{W}t":
                out.append((node.text or "").replace(_BREAK, " ").replace(_RENDERED, " "))
            case t if t == f"{W}tab":
                # Also the name of a tab stop among the properties.
                parent = node.getparent()
                out.append("\t" if parent is not None and parent.tag == f"{W}r" else "")
            case t if t == f"{W}br" or t == f"{W}cr":
                out.append(_BREAK if node.get(f"{W}type") == "page" else "\n")
            case t if t == f"{W}noBreakHyphen":
                out.append("-")
            case t if t == f"{W}lastRenderedPageBreak":
                out.append(_RENDERED)
            case t if t == f"{W}footnoteReference" or t == f"{W}endnoteReference":
                out.append(f"[{node.get(f'{W}id') or ''}]")
            case t if t == _FALLBACK or t == f"{W}rPr" or t == f"{W}pPr" or t == f"{W}del" or t == f"{W}moveFrom":
                skipped = node
    return "".join(out)


def _cells(row: etree._Element) -> tuple[list[str], bool]:
    """Return a row's cells, and whether a page ends inside or before it."""
    cells: list[str] = []
    broken = False
    for cell in _unwrapped(row):
        if cell.tag != f"{W}tc":
            continue
        text = " ".join(_text(paragraph) for paragraph in cell.iter(f"{W}p") if _nearest_cell(paragraph) is cell)
        nested = [_text(p) for p in cell.iter(f"{W}p") if _nearest_cell(p) is not cell]
        whole = " ".join([text, *nested])
        broken = broken or _RENDERED in whole or _BREAK in whole
        properties = cell.find(f"{W}tcPr")
        merged = properties.find(f"{W}vMerge") if properties is not None else None
        goes_on = merged is not None and merged.get(f"{W}val") in (None, "continue")
        cells.append("" if goes_on else markdown.one_line(whole))
        span = properties.find(f"{W}gridSpan") if properties is not None else None
        width = span.get(f"{W}val") if span is not None else None
        cells += [""] * (min(int(width), 64) - 1 if width and width.isdigit() else 0)
    return cells, broken


def _nearest_cell(paragraph: etree._Element) -> etree._Element | None:
    return next(paragraph.iterancestors(f"{W}tc"), None)


def _switched_on(properties: etree._Element | None, name: str) -> bool:
    found = properties.find(f"{W}{name}") if properties is not None else None
    return found is not None and found.get(f"{W}val") not in ("0", "false", "off")
