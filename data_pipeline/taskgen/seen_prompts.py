"""The prompts seen so far, on disk: is this one new, a repeat, or nearly one?

Two prompts are equal but for spaces and what is not seen; they are nearly so where the Jaccard
similarity of their sets of runs of five words or signs (a + is no -), as MinHash estimates it (to
about 0.04), reaches a threshold; locality-sensitive hashing finds the pairs worth a look. All is in
a SQLite file, so memory does not grow with the number of prompts, and what was not committed when a
run was killed never was.
"""

import hashlib
import json
import pathlib
import re
import sqlite3
from collections.abc import Iterator

from rensa import RMinHash  # type: ignore[attr-defined]

from data_pipeline.curation import plain_text

_WORD = re.compile(r"\w+|[^\w\s]")
_SHINGLE_WORDS = 5
_NUM_PERMUTATIONS, _SEED = 128, 42
_MAX_MISSED = 0.01  # of the pairs at the threshold
_SCHEMA = """
CREATE TABLE IF NOT EXISTS prompts (digest BLOB PRIMARY KEY, name TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sketches (number INTEGER PRIMARY KEY, name TEXT, sketch BLOB);
CREATE TABLE IF NOT EXISTS bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number))
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
"""


class SeenPrompts:
    """An open file of prompts; `commit` makes what was added last."""

    def __init__(self, path: pathlib.Path, *, threshold: float):
        """Open or make the file.

        Args:
            path: of the file.
            threshold: similarity from which on prompts are nearly equal; 0 looks for equal ones
                alone. The same at every opening.
        """
        self._threshold = threshold
        self._num_bands = _num_bands(threshold) if threshold else 0
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = OFF")  # a kill loses nothing, a power cut may
        self._database.executescript(_SCHEMA)

    def add(self, name: str, prompt: str) -> tuple[str, float] | None:
        """Take in a prompt; or tell which earlier one it repeats, and their similarity."""
        words = plain_text.of(prompt).split()
        whole = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        found = self._database.execute("SELECT name FROM prompts WHERE digest = ?", (whole,))
        if row := found.fetchone():
            return row[0], 1.0
        if self._threshold:
            sketch = _sketch_of(prompt)
            bands = list(_bands_of(sketch, self._num_bands))
            if near := self._nearest(sketch, bands):
                return near
            self._insert(name, sketch, bands)
        self._database.execute("INSERT INTO prompts VALUES (?, ?)", (whole, name))
        return None

    def state(self, name: str, default: str) -> str:
        """What was committed under `name`."""
        row = self._database.execute("SELECT value FROM states WHERE name = ?", (name,)).fetchone()
        return row[0] if row else default

    def commit(self, **states: str) -> None:
        """Make lasting what was added, with the states of whoever adds."""
        self._database.executemany("INSERT OR REPLACE INTO states VALUES (?, ?)", states.items())
        self._database.commit()

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        self._database.close()

    def _nearest(self, sketch: RMinHash, bands: list[int]) -> tuple[str, float] | None:
        rows = self._database.execute(
            "SELECT name, sketch FROM sketches WHERE number IN (SELECT number FROM bands "
            "WHERE band IN (SELECT value FROM json_each(?))) ORDER BY number",
            (json.dumps(bands),),
        )
        best: tuple[str, float] | None = None
        for name, state in rows:
            similarity = sketch.jaccard(_restored(state))
            if similarity >= self._threshold and (best is None or similarity > best[1]):
                best = (name, similarity)
        return best

    def _insert(self, name: str, sketch: RMinHash, bands: list[int]) -> None:
        state = bytes(sketch.__getstate__())
        number = self._database.execute(
            "INSERT INTO sketches (name, sketch) VALUES (?, ?)", (name, state)
        ).lastrowid
        # One statement, since each gives way to other threads.
        self._database.execute(
            "INSERT INTO bands SELECT DISTINCT value, ? FROM json_each(?)",
            (number, json.dumps(bands)),
        )


def _sketch_of(prompt: str) -> RMinHash:
    words = _WORD.findall(plain_text.folded(prompt))
    sketch = RMinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED)
    starts = range(max(len(words) - _SHINGLE_WORDS + 1, 1))
    sketch.update([" ".join(words[i : i + _SHINGLE_WORDS]) for i in starts])
    return sketch


def _restored(state: bytes) -> RMinHash:
    sketch = RMinHash(num_perm=_NUM_PERMUTATIONS, seed=_SEED)
    sketch.__setstate__(state)
    return sketch


def _bands_of(sketch: RMinHash, num_bands: int) -> Iterator[int]:
    """Numbers of 63 bits, one a band; prompts that share one are compared."""
    values, rows = sketch.digest(), _NUM_PERMUTATIONS // num_bands
    for band in range(num_bands):
        part = b"".join(v.to_bytes(8, "little") for v in values[band * rows : (band + 1) * rows])
        key = hashlib.blake2b(part + bytes([band]), digest_size=8).digest()
        yield int.from_bytes(key, "little") >> 1


def _num_bands(threshold: float) -> int:
    """The fewest bands that miss at most one pair in a hundred at the threshold."""
    for num_bands in (4, 8, 16, 32, 64):
        rows = _NUM_PERMUTATIONS // num_bands
        if (1 - threshold**rows) ** num_bands <= _MAX_MISSED:
            return num_bands
    return _NUM_PERMUTATIONS
