"""XLSX: a page a sheet, its values as Markdown tables, read row by row."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import BinaryIO

from lxml import etree

from worker.pipeline.parse import markdown
from worker.pipeline.parse.draft import Draft, corrupt
from worker.pipeline.parse.formats import package
from worker.pipeline.parse.formats.package import R_ID, Package

ERRORS = package.ERRORS

_S = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_MAX_ROWS = 1_048_576
_MAX_COLUMNS = 16_384
_BLOCK_ROWS = 2000
"""A longer table is written in several, each with the header again: rows are never all held."""
_MAX_BLOCK_CELLS = 200_000
_DATE_FORMATS = frozenset([*range(14, 23), *range(27, 37), *range(45, 48), *range(50, 59)])
_PERCENT_FORMATS = frozenset((9, 10))
_NOT_A_DATE = re.compile(r'"[^"]*"|\\.|\[[^\]]*\]|_.|\*.')


def parse(file: BinaryIO, draft: Draft) -> None:
    """Fill the draft from a workbook: the values that were last computed, never the formulas."""
    parts = Package(file)
    main = parts.main_part("xl/workbook.xml")
    root = parts.tree(main)
    if root is None:
        raise corrupt("no workbook in the package")
    targets = parts.targets(main)
    sheets = list(root.iter(f"{_S}sheet"))
    draft.check_pages(len(sheets))
    draft.offer_title(parts.title())
    kinds = dict(targets.values())
    properties = root.find(f"{_S}workbookPr")
    since = datetime(1904, 1, 1) if _is_on(properties, "date1904") else datetime(1899, 12, 30)
    values = _Values(
        _shared_strings(parts, kinds.get("sharedStrings", "xl/sharedStrings.xml"), draft),
        _formats(parts.tree(kinds.get("styles", "xl/styles.xml"))),
        since,
    )
    for sheet in sheets:
        kind, name = targets.get(sheet.get(R_ID) or "", ("", ""))
        heading = markdown.heading(1, sheet.get("name") or f"Sheet {len(draft.pages) + 1}")
        if sheet.get("state") in ("hidden", "veryHidden"):
            draft.note(f"Sheet {len(draft.pages) + 1} is hidden")
        tables = _Tables(draft)
        if kind == "worksheet" and parts.has(name):
            _read(parts, name, values, tables)
        tables.end_block()
        draft.add_page(markdown.blocks([heading, *tables.blocks]) if tables.blocks else "")
    if not draft.pages:
        draft.add_page("")


class _Values:
    """Cells as people see them, as far as it matters: dates, percentages, texts and plain numbers."""

    def __init__(self, shared: list[str], formats: list[str], since: datetime) -> None:
        self._shared = shared
        self._formats = formats
        self._since = since

    def of(self, cell: etree._Element) -> str:
        """Return the value of a cell, "" for none."""
        kind = cell.get("t", "n")
        if kind == "inlineStr":
            return "".join(text.text or "" for text in cell.iter(f"{_S}t"))
        raw = cell.findtext(f"{_S}v") or ""
        if kind == "s":
            return self._shared[int(raw)] if raw.isdigit() and int(raw) < len(self._shared) else ""
        if kind == "b":
            return {"1": "TRUE", "0": "FALSE"}.get(raw, raw)
        if kind != "n" or not raw:
            return raw
        style = cell.get("s", "0")
        how = self._formats[int(style)] if style.isdigit() and int(style) < len(self._formats) else ""
        return self._number(raw, how)

    def _number(self, raw: str, how: str) -> str:
        try:
            value = float(raw)
        except ValueError:
            return raw
        if how == "date" and 0 <= value < 2_958_466:
            moment = self._since + timedelta(seconds=round(value * 86_400))
            if value < 1:
                return moment.strftime("%H:%M:%S")
            return moment.strftime("%Y-%m-%d %H:%M" if moment.hour or moment.minute else "%Y-%m-%d")
        if how == "percent":
            return f"{value * 100:.10g}%"
        # 0.1 + 0.2 is stored with 17 digits and shown with 15.
        return f"{value:.15g}"


class _Tables:
    """Rows gathered until a blank one; each block becomes a table over the columns it uses."""

    def __init__(self, draft: Draft) -> None:
        self.blocks: list[str] = []
        self._draft = draft
        self._rows: list[dict[int, str]] = []
        self._cells = 0
        self._header: dict[int, str] | None = None
        self._last = 0

    def add(self, number: int, cells: dict[int, str]) -> None:
        """Take a row that holds something; a gap in the numbers ends the table above."""
        if number > self._last + 1:
            self.end_block()
            self._header = None
        elif len(self._rows) >= _BLOCK_ROWS or self._cells + len(cells) > _MAX_BLOCK_CELLS:
            self.end_block()
        if self._header is None:
            self._header = cells
        elif not self._rows:
            self._rows.append(self._header)
        self._rows.append(cells)
        self._cells += len(cells)
        self._last = number

    def end_block(self) -> None:
        """Write what has been gathered."""
        rows, self._rows, self._cells = self._rows, [], 0
        if not rows:
            return
        columns = sorted({column for cells in rows for column in cells})
        # A lone cell is a caption, not a table.
        if len(rows) == 1 and len(columns) == 1:
            lines = [markdown.plain(next(iter(rows[0].values())))]
            self._draft.expect(len(lines[0]))
        else:
            lines = []
            for cells in rows:
                line = markdown.row(cells.get(column, "") for column in columns)
                self._draft.expect(len(line))
                lines.append(line)
            lines.insert(1, markdown.rule(len(columns)))
        self.blocks.append("\n".join(lines))


def _read(parts: Package, name: str, values: _Values, tables: _Tables) -> None:
    number = 0
    for row in parts.events(name, (f"{_S}row",)):
        declared = row.get("r", "")
        # Declared dimensions are not believed; rows and columns without numbers follow the last.
        number = int(declared) if declared.isdigit() and len(declared) < 9 else number + 1
        if number > _MAX_ROWS:
            raise corrupt("a row beyond the last that a sheet can have")
        cells: dict[int, str] = {}
        column = 0
        for cell in row.iterchildren(f"{_S}c"):
            column = _column(cell.get("r", "")) or column + 1
            value = values.of(cell)
            if value and not value.isspace() and column <= _MAX_COLUMNS:
                cells[column] = value
        if cells:
            tables.add(number, cells)


def _column(reference: str) -> int:
    number = 0
    for char in reference[:3]:
        if not "A" <= char <= "Z":
            break
        number = number * 26 + ord(char) - 64
    return number


def _shared_strings(parts: Package, name: str, draft: Draft) -> list[str]:
    if not parts.has(name):
        return []
    found: list[str] = []
    total = 0
    for item in parts.events(name, (f"{_S}si",)):
        # Readings (rPh) of Japanese text repeat it.
        text = "".join(
            node.text or "" for node in item.iter(f"{_S}t") if next(node.iterancestors(f"{_S}rPh"), None) is None
        )
        total += len(text)
        if total > 2 * draft.max_text_bytes:
            draft.expect(total)
        found.append(text)
    return found


def _formats(styles: etree._Element | None) -> list[str]:
    """Return for each cell style whether its numbers are dates or percentages."""
    if styles is None:
        return []
    own = {node.get("numFmtId"): node.get("formatCode") or "" for node in styles.iter(f"{_S}numFmt")}
    found = []
    cells = styles.find(f"{_S}cellXfs")
    for style in cells.iterchildren(f"{_S}xf") if cells is not None else ():
        number = style.get("numFmtId", "0")
        code = _NOT_A_DATE.sub("", own.get(number, "")).lower()
        if number in own:
            kind = "percent" if "%" in code else "date" if re.search(r"[dy]|h|m.*s|mmm", code) else ""
        else:
            known = int(number) if number.isdigit() else 0
            kind = "date" if known in _DATE_FORMATS else "percent" if known in _PERCENT_FORMATS else ""
        found.append("" if kind == "date" and code == "general" else kind)
    return found


def _is_on(element: etree._Element | None, name: str) -> bool:
    return element is not None and element.get(name) in ("1", "true")
