"""Files that carry programs, orders or other files, and files that refer to themselves; each function returns one."""

from __future__ import annotations

from tests import hostile

PLAIN = "Plain words of the page."
SECRET = "PROGRAMTEXT"
"""Stands in every program, order and hidden part; no reader may show it."""
_PAGE = (
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
    b"/Resources << /Font << /F 5 0 R >> /XObject << /I 6 0 R >> >> %s >>"
)
_FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica %s >>"
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"


def _stream(data: bytes, head: bytes = b"") -> bytes:
    return b"<< %s /Length %d >>\nstream\n%s\nendstream" % (head, len(data), data)


def _pdf(
    catalog: bytes = b"", *more: bytes, page: bytes = b"", font: bytes = b"", pages: bytes = b"", draw: bytes = b""
) -> bytes:
    """Return a PDF of one page of plain words; further objects begin at 6, which the page can `draw` as /I."""
    text = b"BT /F 12 Tf 72 700 Td (%s) Tj ET %s" % (PLAIN.encode(), draw)
    return hostile.pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 %s >>" % pages,
            _PAGE % page,
            _stream(text),
            _FONT % font,
            *more,
        ]
    )


def _picture(kind: str) -> bytes:
    """Return a picture that claims 60,000 points a side and holds a few bytes."""
    head = b"/Type /XObject /Subtype /Image /Width 60000 /Height 60000 /BitsPerComponent 1 /ColorSpace /DeviceGray"
    return _stream(b"\x00\x00\x00\x0cjP  \xff\xd8\xff" + b"\x81\xff" * 500, head + b" /Filter /" + kind.encode())


def _docx(body: str, relations: str = "", **parts: bytes | str) -> bytes:
    rels = f'<Relationships xmlns="{_PACKAGE}">{relations}</Relationships>'
    return hostile.docx(hostile.document(body), **{"word/_rels/document.xml.rels": rels, **parts})


def _relation(kind: str, target: str, *, external: bool = True) -> str:
    mode = ' TargetMode="External"' if external else ""
    return f'<Relationship Id="r1" Type="{_REL}/{kind}" Target="{target}"{mode}/>'


def _paragraph(text: str = PLAIN) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def active(port: int = 9) -> dict[str, bytes]:
    """Return files whose plain words are to be read and nothing else; some order a call to a port of this machine."""
    address = f"http://127.0.0.1:{port}/{SECRET}"
    script = b"<< /S /JavaScript /JS (app.alert\\('%s'\\)) >>" % SECRET.encode()
    attached = b"<< /Type /Filespec /F (x.exe) /EF << /F 7 0 R >> >>"
    field = "".join(
        f'<w:p><w:r><w:fldChar w:fldCharType="{kind}"/></w:r>{rest}</w:p>'
        for kind, rest in (("begin", f"<w:r><w:instrText>DDEAUTO {SECRET} calc</w:instrText></w:r>"), ("end", ""))
    )
    cells = f'<row r="1"><c r="A1" t="str"><f>cmd|"/c {SECRET}"!A0</f><v>{PLAIN}</v></c></row>'
    return {
        "javascript when opened.pdf": _pdf(b"/OpenAction 6 0 R", script),
        "javascript by name.pdf": _pdf(b"/Names << /JavaScript << /Names [(x) 6 0 R] >> >>", script),
        "javascript of the page.pdf": _pdf(b"", script, page=b"/AA << /O 6 0 R /C 6 0 R >>"),
        "launches a program.pdf": _pdf(b"/OpenAction << /S /Launch /F (%s) >>" % SECRET.encode()),
        "fetches an address.pdf": _pdf(b"/OpenAction << /S /URI /URI (%s) >>" % address.encode()),
        "submits a form.pdf": _pdf(b"/OpenAction << /S /SubmitForm /F (%s) >>" % address.encode()),
        "holds a file.pdf": _pdf(
            b"/Names << /EmbeddedFiles << /Names [(x.exe) 6 0 R] >> >>", attached,
            _stream(SECRET.encode(), b"/Type /EmbeddedFile"),
        ),
        "form of XFA.pdf": _pdf(
            b"/AcroForm << /Fields [] /XFA 6 0 R >>",
            _stream(b"<xdp><script>%s</script></xdp>" % SECRET.encode()),
        ),
        "outside its folder.docx": _docx(_paragraph(), **{f"../../../tmp/{SECRET}.xml": SECRET, "/etc/x": SECRET}),
        "remote template.docx": _docx(_paragraph(), _relation("attachedTemplate", f"{address}.dotm")),
        "remote picture.docx": _docx(_paragraph(), _relation("image", f"file:///etc/passwd#{SECRET}")),
        "macros.docx": _docx(
            _paragraph(), _relation("vbaProject", "vbaProject.bin", external=False),
            **{"word/vbaProject.bin": SECRET.encode()},
        ),
        "a field that calls.docx": _docx(_paragraph() + field),
        "another document inside.docx": _docx(
            _paragraph() + f'<w:altChunk xmlns:r="{_REL}" r:id="r1"/>',
            _relation("aFChunk", "chunk.html", external=False),
            **{"word/chunk.html": f"<script>{SECRET}</script>"},
        ),
        "a formula that calls.xlsx": hostile.xlsx(hostile.worksheet(cells)),
        "scripts.html": (
            f"<html><head><script>{SECRET}</script><style>{SECRET}</style><title>T</title></head>"
            f"<body onload='{SECRET}'><p>{PLAIN}</p><script type=module>{SECRET}</script><noscript></noscript>"
            f"<svg><script>{SECRET}</script></svg><template><p>{SECRET}</p></template>"
            f"<iframe srcdoc='<p>{SECRET}</p>'></iframe><object data='{address}'></object>"
            f"<img src='x' onerror='{SECRET}'><meta http-equiv=refresh content='0;url={address}'>"
            "</body></html>"
        ).encode(),
    }  # fmt: skip


def recursive() -> dict[str, bytes]:
    """Return files that refer to themselves: each ends, with its words or a refusal."""
    loop = "<w:style w:type='paragraph' w:styleId='A'><w:basedOn w:val='B'/></w:style>"
    back = "<w:style w:type='paragraph' w:styleId='B'><w:basedOn w:val='A'/></w:style>"
    styled = f"<w:p><w:pPr><w:pStyle w:val='A'/></w:pPr><w:r><w:t>{PLAIN}</w:t></w:r></w:p>"
    quine = hostile.package({"a.zip": b"PK\x03\x04" * 1000, "word/document.xml": hostile.document(_paragraph())})
    return {
        "outline.pdf": _pdf(b"/Outlines 6 0 R", b"<< /First 7 0 R /Last 7 0 R /Count 9 >>",
                            b"<< /Title (x) /Parent 6 0 R /Next 7 0 R /First 7 0 R >>"),
        "names.pdf": _pdf(b"/Names << /Dests 6 0 R >>", b"<< /Kids [6 0 R 6 0 R] >>"),
        "parents.pdf": _pdf(pages=b"/Parent 2 0 R"),
        "font.pdf": _pdf(b"", b"<< /Type /Encoding /Differences 6 0 R /BaseEncoding 6 0 R >>", font=b"/Encoding 6 0 R"),
        "characters.pdf": _pdf(b"", _stream(b"/X usecmap", b"/UseCMap 6 0 R"), font=b"/ToUnicode 6 0 R"),
        "length.pdf": _pdf(b"", b"<< /Length 6 0 R >>\nstream\nx\nendstream", page=b"/Annots [6 0 R]"),
        "objects.pdf": _pdf(b"/X 6 0 R", _stream(b"6 0 ", b"/Type /ObjStm /N 1 /First 4 /Extends 6 0 R")),
        "form of forms.pdf": _pdf(b"/AcroForm << /Fields [6 0 R] >>", b"<< /Kids [6 0 R] /Parent 6 0 R /T (x) >>"),
        "deep arrays.pdf": _pdf(b"/X " + b"[" * 50_000 + b"]" * 50_000),
        **{f"{kind} of 3,600 million points.pdf": _pdf(b"", _picture(kind), draw=b"/I Do")
           for kind in ("JBIG2Decode", "JPXDecode", "DCTDecode", "CCITTFaxDecode", "RunLengthDecode", "LZWDecode")},
        "styles.docx": _docx(styled, _relation("styles", "styles.xml", external=False),
                             **{"word/styles.xml": f"<w:styles xmlns:w='{_W}'>{loop}{back}</w:styles>"}),
        "relations.docx": _docx(_paragraph(), _relation("styles", "document.xml", external=False)),
        "zip in zip.docx": quine,
        "quotes.md": b">" * 200_000 + b" " + PLAIN.encode(),
        "brackets.md": b"[" * 200_000 + PLAIN.encode() + b"]" * 200_000,
        "emphasis.md": b"*_" * 100_000 + PLAIN.encode(),
        "lists.md": b"".join(b" " * (2 * depth) + b"- x\n" for depth in range(2000)),
        "fences.md": b"".join(b"`" * count + b"\n" for count in range(3, 2000)),
        "tables.html": b"<table><tr><td>" * 5000 + PLAIN.encode() + b"</table>" * 5000,
        "entities.html": b"<p>" + b"&amp;" * 500_000 + b"</p>",
        "quotes.csv": b'"' * 1_000_001 + b"\n" + PLAIN.encode(),
    }  # fmt: skip
