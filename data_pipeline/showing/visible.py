"""Text of unknown origin, made safe to show: what a reader cannot see becomes visible.

A model's text may hold terminal escape sequences, marks that reverse the direction of writing, and
characters that hide others. None of them reaches a terminal, a page or a picture as it is:

    ESC [ 31 m  ->  ␛[31m        U+202E  ->  \\u202e        CR LF  ->  ␍ LF
"""

import unicodedata

_JOINERS = "\u200c\u200d"  # parts of emoji and of words in some scripts
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, half surrogates, separators


class _Visible(dict[int, str]):
    """How each character is shown, found when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = _shown(chr(code))
        return self[code]


def _shown(character: str) -> str:
    code = ord(character)
    if character in _JOINERS or unicodedata.category(character) not in _HIDDEN:
        return character
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's pictures of the controls
    if code == 0x7F:
        return "\u2421"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


_IN_LINE = _Visible()
_IN_TEXT = _Visible({ord(kept): kept for kept in "\n\t"})


def text(text: str) -> str:
    """The text with its lines and tabs, all else that is not seen made visible."""
    return text.translate(_IN_TEXT)


def line(text: str, *, max_characters: int = 0) -> str:
    """The text as one line; what is longer than `max_characters` loses its middle."""
    if max_characters and len(text) > max_characters:
        half = (max_characters - 1) // 2
        text = f"{text[: max_characters - 1 - half]}…{text[-half:]}"
    return text.translate(_IN_LINE)
