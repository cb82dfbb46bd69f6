"""Text in one form, for comparing: what looks alike is alike, and what is not seen is not there."""

import re
import unicodedata

# Soft hyphens, joiners, spaces without width, marks of direction, tags, variants of a glyph.
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e0fff]"
)
_ACCENTS = re.compile("[\u0300-\u036f]")  # of Latin, Greek and Cyrillic letters
_DOTLESS_I = str.maketrans("\u0131", "i")  # its capital is that of i


def of(text: str) -> str:
    """The text in one form of Unicode, without characters that are not seen."""
    return text if text.isascii() else unicodedata.normalize("NFKC", _UNSEEN.sub("", text))


def folded(text: str) -> str:
    """The text without case, and without accents, which some capitals lose and others hold."""
    if text.isascii():
        return text.lower()
    bare = _ACCENTS.sub("", unicodedata.normalize("NFKD", of(text).casefold()))
    return unicodedata.normalize("NFC", bare).translate(_DOTLESS_I)
