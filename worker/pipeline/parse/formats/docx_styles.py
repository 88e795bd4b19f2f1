"""Which of a Word document's styles are headings and lists, through what they are based on."""

from __future__ import annotations

import re

from lxml import etree

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_HEADING = re.compile(r"^(?:heading|überschrift|titre|título|titolo|kop)\s*([1-9])$", re.IGNORECASE)
_MAX_BASES = 20


class Style:
    """What a paragraph's style says: the heading's level (1 the highest) or None, and its list."""

    __slots__ = ("numbering", "outline")

    def __init__(self, outline: int | None, numbering: etree._Element | None) -> None:
        self.outline = outline
        self.numbering = numbering


class Styles:
    """The styles by id; a paragraph may overrule its style's outline level."""

    def __init__(self, root: etree._Element | None) -> None:
        self._elements: dict[str, etree._Element] = {}
        self._known: dict[str, Style] = {}
        self._default = ""
        for style in root.iterchildren(f"{W}style") if root is not None else ():
            if style.get(f"{W}type", "paragraph") == "paragraph":
                name = style.get(f"{W}styleId") or ""
                self._elements[name] = style
                if style.get(f"{W}default") in ("1", "true"):
                    self._default = name

    def of(self, properties: etree._Element | None) -> Style:
        """Return the style of a paragraph with these properties."""
        named = properties.find(f"{W}pStyle") if properties is not None else None
        style = self._style((named.get(f"{W}val") if named is not None else None) or self._default)
        own = _outline(properties)
        return style if own is None else Style(own or None, style.numbering)

    def _style(self, name: str) -> Style:
        if name not in self._known:
            outline: int | None = None
            numbering: etree._Element | None = None
            at: str | None = name
            for _ in range(_MAX_BASES):
                element = self._elements.get(at or "")
                if element is None:
                    # python-docx and others use built-in ids without defining the style.
                    outline = _by_name(at or "") if outline is None else outline
                    break
                properties = element.find(f"{W}pPr")
                called = element.find(f"{W}name")
                if outline is None:
                    outline = _outline(properties)
                if outline is None:
                    outline = _by_name((called.get(f"{W}val") if called is not None else None) or "")
                if numbering is None and properties is not None:
                    numbering = properties.find(f"{W}numPr")
                base = element.find(f"{W}basedOn")
                at = base.get(f"{W}val") if base is not None else None
                if at is None:
                    break
            self._known[name] = Style(outline or None, numbering)
        return self._known[name]


def _outline(properties: etree._Element | None) -> int | None:
    """Return the outline level counted from 1, 0 for body text, None where nothing is said."""
    found = properties.find(f"{W}outlineLvl") if properties is not None else None
    value = found.get(f"{W}val") if found is not None else None
    if value is None or not value.isdigit():
        return None
    return int(value) + 1 if int(value) < 9 else 0


def _by_name(name: str) -> int | None:
    if name.lower() == "title":
        return 1
    match = _HEADING.match(re.sub(r"(?<=[a-z])(?=\d)", " ", name, flags=re.IGNORECASE))
    return int(match.group(1)) if match is not None else None
