"""The labels that Word shows before numbered paragraphs and stores nowhere: `2.3`, `(b)`, `iv.`."""

from __future__ import annotations

import re

from lxml import etree

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"))
_ROMAN_SMALL = ((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"))
_LEVELS = 9


class _Level:
    def __init__(self, element: etree._Element) -> None:
        self.start = _number(element.find(f"{W}start"), 1)
        kind = element.find(f"{W}numFmt")
        self.kind = (kind.get(f"{W}val") if kind is not None else None) or "decimal"
        text = element.find(f"{W}lvlText")
        self.text = (text.get(f"{W}val") if text is not None else None) or ""


class Numbering:
    """Counts numbered paragraphs in the order in which they are asked for."""

    def __init__(self, root: etree._Element | None) -> None:
        self._lists: dict[str, str] = {}
        self._levels: dict[str, dict[int, _Level]] = {}
        self._counts: dict[str, list[int | None]] = {}
        if root is None:
            return
        for abstract in root.iterchildren(f"{W}abstractNum"):
            levels = {_attribute(level, "ilvl"): _Level(level) for level in abstract.iterchildren(f"{W}lvl")}
            self._levels[abstract.get(f"{W}abstractNumId") or ""] = levels
        for number in root.iterchildren(f"{W}num"):
            definition = number.find(f"{W}abstractNumId")
            if definition is not None:
                self._lists[number.get(f"{W}numId") or ""] = definition.get(f"{W}val") or ""

    def label(self, properties: etree._Element | None, of_style: etree._Element | None) -> tuple[int, str] | None:
        """Return the paragraph's depth and label (`-` for bullets), or None when it is in no list."""
        own = properties.find(f"{W}numPr") if properties is not None else None
        name, depth = _list(own)
        if name is None:
            name, style_depth = _list(of_style)
            depth = depth or style_depth
        if name is None or name == "0" or name not in self._lists:
            return None
        depth = min(depth, _LEVELS - 1)
        levels = self._levels.get(self._lists[name], {})
        level = levels.get(depth)
        if level is None or level.kind in ("bullet", "none"):
            return depth, "-"
        # Lists that share an abstract definition count on, as Word does unless told to restart.
        counts = self._counts.setdefault(name, [None] * _LEVELS)
        current = counts[depth]
        counts[depth] = level.start if current is None else current + 1
        counts[depth + 1 :] = [None] * (_LEVELS - depth - 1)

        def shown(match: re.Match[str]) -> str:
            at = int(match.group(1)) - 1
            of = levels.get(at)
            count = counts[at] if at < _LEVELS else None
            if count is None:
                count = of.start if of is not None else 1
            return _written(count, of.kind if of is not None else "decimal")

        label = re.sub(r"%([1-9])", shown, level.text).strip()
        return depth, label or "-"


def _list(properties: etree._Element | None) -> tuple[str | None, int]:
    if properties is None:
        return None, 0
    number = properties.find(f"{W}numId")
    return (number.get(f"{W}val") if number is not None else None), _number(properties.find(f"{W}ilvl"), 0)


def _number(element: etree._Element | None, default: int) -> int:
    value = element.get(f"{W}val") if element is not None else None
    return int(value) if value is not None and value.isdigit() and len(value) < 7 else default


def _attribute(element: etree._Element, name: str) -> int:
    value = element.get(f"{W}{name}") or ""
    return int(value) if value.isdigit() and len(value) < 7 else 0


def _written(count: int, kind: str) -> str:
    match kind:
        case "lowerLetter" | "upperLetter":
            letters = chr(97 + (count - 1) % 26) * min((count - 1) // 26 + 1, 5)
            return letters.upper() if kind == "upperLetter" else letters
        case "lowerRoman" | "upperRoman" if 0 < count < 4000:
            roman, left = "", count
            for value, sign in _ROMAN + _ROMAN_SMALL:
                roman += sign * (left // value)
                left %= value
            return roman.upper() if kind == "upperRoman" else roman
        case "decimalZero":
            return f"{count:02d}"
    return str(count)
