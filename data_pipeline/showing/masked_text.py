"""Tokens as text in a terminal, by what becomes of them: trained, read as context, or repeated.

Text of models is hostile: it is made visible, never read as markup, and leaves as it is otherwise:
not wrapped, its tabs kept. Tokens of one kind are decoded together, so characters of several tokens
stay whole.
"""

import pathlib
from collections.abc import Iterable

import numpy as np
import tokenizers
from rich import console as rich_console
from rich import segment as rich_segment
from rich import style as rich_style

from data_pipeline.showing import visible

CONTEXT, TARGET, CARRIED = range(3)  # kinds of tokens
PLAIN, TRAINED, FAINT = (rich_style.Style(), rich_style.Style(color="green"),
                         rich_style.Style(dim=True))  # fmt: skip
_STYLES = {CONTEXT: PLAIN, TARGET: TRAINED, CARRIED: FAINT}

Styled = tuple[str, rich_style.Style]


def load(tokenizer_dir: pathlib.Path) -> tokenizers.Tokenizer:
    """The tokenizer of a folder, to decode with.

    Raises:
        ValueError: its file cannot be read.
    """
    path = tokenizer_dir / "tokenizer.json"
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: not a tokenizer file ({error})") from error


def styled(tokenizer: tokenizers.Tokenizer, tokens: np.ndarray, kinds: np.ndarray) -> list[Styled]:
    """The text of each run of tokens of one kind, and its style."""
    cuts = np.flatnonzero(np.diff(kinds)) + 1
    return [
        (tokenizer.decode(run.tolist(), skip_special_tokens=False), _STYLES[int(of_run[0])])
        for run, of_run in zip(np.split(tokens, cuts), np.split(kinds, cuts), strict=True)
        if len(run)
    ]


def show(console: rich_console.Console, texts: Iterable[Styled]) -> None:
    """Write texts one behind the other, and end the line if the last does not."""
    segments = [rich_segment.Segment(visible.text(text), style) for text, style in texts]
    if segments and not segments[-1].text.endswith("\n"):
        segments.append(rich_segment.Segment("\n"))
    console.print(rich_segment.Segments(segments), soft_wrap=True, end="")
