"""Text that Postgres takes and whose offsets stay true: bytes to str, and str cleaned once for all.

Imported by the sandboxed child of every document: it needs nothing but the standard library's core.
"""

from __future__ import annotations

import codecs
import re
import unicodedata

# Dropped without a trace. Controls (asyncpg and jsonb refuse NUL: 22021, 22P05) and non-characters mean
# nothing; soft hyphens and byte order marks split words for full text; bidirectional embeddings,
# overrides and isolates can make a snippet read otherwise than it is stored. The plain direction marks
# and the joiners stay: Arabic, Persian and emoji need them.
_DROPPED_CLASS = "\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\xad\ufeff\u202a-\u202e\u2066-\u2069\ufdd0-\ufdef" + "".join(
    chr(plane * 0x10000 + low) for plane in range(17) for low in (0xFFFE, 0xFFFF)
)
_BREAK_CLASS = "\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029"
_SPACE_CLASS = "\xa0\u2007\u202f"
_SURROGATE_CLASS = "\ud800-\udfff"

_UNSAFE = re.compile(f"[{_DROPPED_CLASS}{_BREAK_CLASS}{_SURROGATE_CLASS}]")
_UNCLEAN = re.compile(f"[{_DROPPED_CLASS}{_BREAK_CLASS}{_SURROGATE_CLASS}{_SPACE_CLASS}]")
# All but Latin, Greek, Cyrillic, kana, Chinese, Korean syllables, signs and emoji: combining marks are beyond those.
_COMBINING = re.compile(
    "[^\x00-\u02ff\u0370-\u0482\u048a-\u058f\u1e00-\u20bf\u2100-\u2bff"
    "\u3000-\u3029\u3030-\u3096\u309b-\u30ff\u3400-\u9fff\uac00-\ud7a3\uff00-\uffdc\U0001f000-\U0001faff]"
)
_SURROGATES = re.compile(f"[{_SURROGATE_CLASS}]")
_DROPPED = re.compile(f"[{_DROPPED_CLASS}]")
_BREAKS = re.compile(f"\r\n|[{_BREAK_CLASS}]")
_SPACES = re.compile(f"[{_SPACE_CLASS}]")

_ASCII = bytes(range(0x80))
_CHARSETS = (
    "utf_8", "utf_16", "utf_16_le", "utf_16_be", "utf_32", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254",
    "cp437", "iso8859_1", "iso8859_2", "iso8859_5", "iso8859_7", "iso8859_9", "iso8859_15", "koi8_r", "koi8_u",
    "shift_jis", "cp932", "euc_jp", "gb18030", "gbk", "big5", "euc_kr",
)  # fmt: skip


def clean(text: str) -> str:
    """Return the text as it is stored: line ends are \\n, no controls, no surrogates, composed (NFC).

    NFC because macOS writes decomposed accents, which full text and the embedder would take for other
    words than those of a query. Cleaning twice changes nothing. The time is quadratic in the longest
    run of combining marks, so hostile text is cleaned in the child only.
    """
    if _UNCLEAN.search(text) is not None:
        if _SURROGATES.search(text) is not None:
            # Pairs become the character they stand for, lone halves U+FFFD.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        text = _SPACES.sub(" ", _DROPPED.sub("", _BREAKS.sub("\n", text)))
    return unicodedata.normalize("NFC", text)


def is_simple(text: str) -> bool:
    """Tell whether the text has nothing but letters, digits and signs that `clean` takes in linear time."""
    return text.isascii() or _COMBINING.search(text) is None


def is_safe(text: str) -> bool:
    """Tell whether Postgres takes the text and its line ends are single; linear, whatever it holds."""
    return _UNSAFE.search(text) is None


def load_charsets() -> None:
    """Import every codec now: the sandboxed child cannot open files once it has closed its doors."""
    for name in _CHARSETS:
        codecs.lookup(name)


def decode(data: bytes, declared: str | None = None) -> str:
    """Return bytes as text, never failing: what cannot be read is U+FFFD.

    A byte order mark wins, then UTF-8 where it fits, then the `declared` charset if it is known, then
    UTF-16 by its zero bytes, then Windows-1252, which reads all of Latin-1 that people write.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf_8"),
        (codecs.BOM_UTF32_LE, "utf_32"),  # before UTF-16, whose mark it begins with
        (codecs.BOM_UTF32_BE, "utf_32"),
        (codecs.BOM_UTF16_LE, "utf_16"),
        (codecs.BOM_UTF16_BE, "utf_16"),
    ):
        if data.startswith(mark):
            return data.decode(name, "replace").removeprefix("\ufeff")
    wide = wide_order(data)
    if wide is not None:
        return data.decode(wide, "replace")
    try:
        return data.decode("utf_8")
    except UnicodeDecodeError:
        pass
    known = _charset(declared)
    if known is not None:
        return data.decode(known, "replace")
    damaged = data.decode("utf_8", "replace")
    lost = damaged.count("\ufffd")
    read = len(damaged) - lost - (len(data) - len(data.translate(None, _ASCII)))
    # Mostly right UTF-8 with a few bad bytes, surrogates written as three bytes among them.
    if read > lost or b"\xed\xa0" in data:
        return _encoded_surrogates(data) or damaged
    return data.decode("cp1252", "replace")


def wide_order(data: bytes) -> str | None:
    """Name the UTF-16 that text without a mark is in, by the zero bytes of its first characters."""
    head = data[:4096]
    if len(head) < 4 or len(data) % 2:
        return None
    even, odd = head[0::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    if odd > half * 0.6 and even < half * 0.05:
        return "utf_16_le"
    if even > half * 0.6 and odd < half * 0.05:
        return "utf_16_be"
    return None


def _charset(declared: str | None) -> str | None:
    try:
        name = codecs.lookup(declared or "").name.replace("-", "_")
    except (LookupError, ValueError, OSError):
        return None
    if name == "iso8859_1":
        return "cp1252"  # who says Latin-1 means it, as browsers know
    return name if name in _CHARSETS and not name.startswith("utf_") else None


def _encoded_surrogates(data: bytes) -> str | None:
    try:
        return data.decode("utf_8", "surrogatepass")
    except UnicodeDecodeError:
        return None
