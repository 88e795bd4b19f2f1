"""HTML: the main text as Markdown; scripts, styles, comments, navigation and forms are left out, nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from lxml import etree

from worker.pipeline.parse import markdown
from worker.pipeline.parse.draft import Draft, corrupt
from worker.pipeline.text import clean, decode

ERRORS = (etree.LxmlError,)

_CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)
_HIDDEN_STYLE = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t\n\r\f]+")
_LEFT_OUT = frozenset((
    "script", "style", "noscript", "template", "svg", "math", "iframe", "frame", "object", "embed", "applet",
    "audio", "video", "canvas", "map", "select", "option", "button", "input", "textarea", "datalist", "dialog",
    "head", "link", "meta", "base", "nav",
))  # fmt: skip
_AROUND = frozenset(("header", "footer", "aside"))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i",
    "img", "ins", "kbd", "label", "mark", "q", "ruby", "rp", "rt", "s", "samp", "small", "span", "strike", "strong",
    "sub", "sup", "time", "tt", "u", "var", "wbr",
))  # fmt: skip
_MAX_DEPTH = 200


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft with one page: what stands in <main>, or in the article, or in the whole body."""
    data = file.read()
    declared = _CHARSET.search(data[:4096])
    text = clean(decode(data, declared.group(1).decode("ascii", "replace") if declared is not None else None))
    # HTML has no entities that grow: lifting libxml2's limits only allows boxes 2048 deep instead of 256,
    # which mail programs reach. Memory is bounded from outside.
    parser = etree.HTMLParser(
        encoding="utf-8", no_network=True, huge_tree=True, remove_comments=True, remove_pis=True, recover=True
    )
    root = etree.fromstring(text.encode(), parser) if text.strip() else None
    if any("xcessive depth" in error.message for error in parser.error_log):
        raise corrupt("elements nested too deeply")
    if root is None:
        draft.add_page("")
        return
    title = root.find(".//title")
    draft.offer_title(_all_text(title) if title is not None else None)
    main, narrowed = _main(root)
    writer = _Writer(draft, keep_around=narrowed)
    writer.walk(main)
    draft.add_page(markdown.blocks(writer.end()))
    heading = main.find(".//h1")
    draft.offer_title(_all_text(heading, " ") if heading is not None else None)


def _main(root: etree._Element) -> tuple[etree._Element, bool]:
    """Return the element that holds the main text, and whether the page named it."""
    body = root.find("body")
    whole = body if body is not None else root
    for path in (".//main", ".//*[@role='main']"):
        found = whole.findall(path)
        if len(found) == 1 and _length(found[0]) > 0:
            return found[0], True
    articles = whole.findall(".//article")
    if len(articles) == 1 and _length(articles[0]) > 0.5 * _length(whole):
        return articles[0], True
    return whole, False


def _length(element: etree._Element) -> int:
    return len(_all_text(element).strip())


def _all_text(element: etree._Element, joint: str = "") -> str:
    return joint.join(str(text) for text in element.itertext())


class _Writer:
    """Gathers inline text into paragraphs and writes blocks as they end."""

    def __init__(self, draft: Draft, *, keep_around: bool) -> None:
        self._draft = draft
        self._left_out = _LEFT_OUT if keep_around else _LEFT_OUT | _AROUND
        self._blocks: list[str] = []
        self._inline: list[str] = []

    def end(self) -> list[str]:
        """Return the blocks, the open paragraph included."""
        self._flush()
        return self._blocks

    def walk(self, element: etree._Element, depth: int = 0, lists: int = 0) -> None:
        """Write what the element holds; deeper than any page of people, only text."""
        if depth > _MAX_DEPTH:
            self._inline.append(_all_text(element, " "))
            return
        self._inline.append(element.text or "")
        for child in element:
            if isinstance(child.tag, str) and not self._is_hidden(child):
                self._child(child, depth + 1, lists)
            self._inline.append(child.tail or "")

    def _child(self, child: etree._Element, depth: int, lists: int) -> None:
        tag = child.tag
        if tag == "br":
            self._inline.append("\r")  # clean() left none: it stands for a line's end from here on
        elif tag == "img":
            self._inline.append(child.get("alt") or "")
        elif tag in _INLINE:
            self.walk(child, depth, lists)
        elif tag == "pre":
            self._flush()
            self._fenced(_all_text(child))
        elif tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
            self._flush()
            title = markdown.one_line(self._text(child, depth))
            self._add(markdown.heading(int(tag[1]), title) if title else "")
        elif tag in ("ul", "ol"):
            self._flush()
            self._list(child, depth, lists)
        elif tag == "table" and _is_data(child):
            self._flush()
            self._add(markdown.table([cells for cells in self._rows(child, depth) if any(cells)]))
        else:
            self._flush()
            self.walk(child, depth, lists)
            self._flush()

    def _list(self, element: etree._Element, depth: int, lists: int) -> None:
        """Write a list's items one below the other, lists inside an item one step to the right."""
        lines: list[str] = []
        start = element.get("start", "1")
        number = int(start) if start.isdigit() and len(start) < 7 else 1
        for child in element:
            if not isinstance(child.tag, str) or self._is_hidden(child):
                continue
            writer = _Writer(self._draft, keep_around=self._left_out is _LEFT_OUT)
            if child.tag in ("ul", "ol"):
                writer._list(child, depth + 1, lists + 1)
                lines += writer.end()
                continue
            writer.walk(child, depth + 1, lists + 1)
            mark = f"{number}." if element.tag == "ol" else "-"
            number += 1
            for position, block in enumerate(writer.end()):
                nested = block.lstrip().startswith(("- ", "```")) or re.match(r"\s*\d+\. ", block)
                if position == 0 and not nested:
                    lines.append(markdown.item(lists, mark, block))
                else:
                    lines.append(block)
        self._add("\n".join(lines))

    def _rows(self, table: etree._Element, depth: int) -> Iterator[list[str]]:
        for row in table.iter("tr"):
            cells: list[str] = []
            for cell in row.iterchildren("td", "th"):
                cells.append(markdown.one_line(self._text(cell, depth)))
                span = cell.get("colspan", "1")
                cells += [""] * (min(int(span), 64) - 1 if span.isdigit() and len(span) < 5 else 0)
            yield cells

    def _text(self, element: etree._Element, depth: int) -> str:
        writer = _Writer(self._draft, keep_around=self._left_out is _LEFT_OUT)
        writer.walk(element, depth + 1)
        return " ".join(writer.end())

    def _fenced(self, text: str) -> None:
        text = text.strip("\n")
        fence = "```"
        while fence in text:
            fence += "`"
        self._add(f"{fence}\n{text}\n{fence}" if text.strip() else "")

    def _flush(self) -> None:
        text = _BLANKS.sub(" ", "".join(self._inline).replace("\r", "\x1e"))
        self._inline = []
        self._draft.expect(len(text))
        self._add(markdown.plain("\n".join(line.strip() for line in text.split("\x1e")).strip()))

    def _add(self, block: str) -> None:
        if block:
            self._blocks.append(block)

    def _is_hidden(self, element: etree._Element) -> bool:
        return (
            element.tag in self._left_out
            or element.get("hidden") is not None
            or element.get("aria-hidden") == "true"
            or _HIDDEN_STYLE.search(element.get("style") or "") is not None
        )


def _is_data(table: etree._Element) -> bool:
    """Tell a table of values from one that only lays out a page."""
    if table.get("role") == "presentation" or table.find(".//table") is not None:
        return False
    widths = [sum(1 for _ in row.iterchildren("td", "th")) for row in table.iter("tr")]
    return max(widths, default=0) > 1
