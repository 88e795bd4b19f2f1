"""Names that are made to harm whoever takes one for more than data: 500 of them, by rule, the same ones every time."""

from __future__ import annotations

import itertools
import unicodedata

# What harms SQL, shells, formats, URLs, paths, terminals and people, one at a time.
_PIECES = (
    "'", '"', "''", '"; drop table public.documents; --', "'); delete from public.jobs; --", "$$", "$1", "$b$ $b$",
    "%I", "%s", "%L", "%(name)s", "{0}", "{name}", "${HOME}", "$(id)", "`id`", ";id", "|id", "&& id", "\\", "\\\\",
    "\\0", "\\n", "\\u0000", "\n", "\r\n", "\t", "\x01", "\x1b[31m", "\x7f", "\x85", "..", "../", "../../", "..\\..\\",
    "%2e%2e%2f", "%2e%2e/", "..%2f", "%00", "%", "%%", "%zz", "%25", "?", "?download=1", "#", "#fragment", "&", "=",
    "+", " ", "  ", ":", "@", "*", "!", "(", ")", "[", "]", "<script>alert(1)</script>", "<", ">", "|", "~", "^", ",",
    ".hidden", "-rf", "--help", "con", "nul.", "NUL", "null", "undefined", "true", "NaN", "0x0", "1e400", "C:\\x",
    "file:///etc/passwd", "http://127.0.0.1/", "//host/share", "\u200b", "\u202e", "\u2028", "\ufeff", "\ufffe",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "ö", "o\u0308", "é", "e\u0301", "ﬁ", "İ", "ß", "中文",
    "עברית", "a" * 200, "{\"k\": 1}", "[1]", "\\x27", "\u0130", ".emptyFolderPlaceholder.md",
)  # fmt: skip
# How a piece stands in a name; the tenant's folder comes first.
_SHAPES = ("{}.md", "a{}b.md", "{}/x.md", "x/{}.md", "{0}{0}.md", "x.md{}")
COUNT = 500
LONGEST = 1024
# Where no tenant's folder comes first.
_ROOTLESS = (
    "/etc/passwd", "../x.md", "..", ".", "/", "//", "x.md", "\\x.md", "'", "%I", "documents/x.md", "null/x.md",
    "00000000-0000-4000-8000-000000000000/x.md", "{folder}", "{folder}/", "/{folder}/x.md", " {folder}/x.md",
    "../{folder}/x.md", "{folder}\\x.md", "{folder}x/x.md",
)  # fmt: skip


def below(folder: str) -> list[str]:
    """Return the names below a tenant's folder, all different and none above 1,024 bytes."""
    shaped = [shape.format(piece) for shape, piece in itertools.product(_SHAPES, _PIECES)]
    long = [("ab" * LONGEST)[: LONGEST - len(folder) - 4] + ".md", "/".join(["d"] * 400) + ".md", "ü" * 400 + ".md"]
    twins = [form for word in ("Übergröße.md", "Ångström.md", "한글.md") for form in
             (unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word))]  # fmt: skip
    names = list(dict.fromkeys(f"{folder}/{name}" for name in [*twins, *long, *shaped]))
    numbered = (f"{folder}/{number}{piece}.md" for number in itertools.count() for piece in _PIECES)
    while len(names) < COUNT - len(_ROOTLESS):
        names.append(next(numbered))
    return [name for name in names if len(name.encode()) <= LONGEST][: COUNT - len(_ROOTLESS)]


def outside(folder: str) -> list[str]:
    """Return the names that lie in no tenant's folder, though some hold this one."""
    return [name.replace("{folder}", folder) for name in _ROOTLESS]
