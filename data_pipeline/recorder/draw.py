"""Small things that families draw from their random source: words, names, addresses, tables."""

import random
from collections.abc import Iterable

_WORDS = """
amber anchor apple arrow autumn basil beacon birch bridge candle canyon cedar cloud cobalt copper
coral cotton crane delta ember falcon fern field flint forest garden ginger glacier granite harbor
hazel heron indigo island ivory jasmine juniper lagoon lantern lemon lilac maple marble meadow
mint morning nectar nickel oak ocean olive onyx orchid otter pearl pebble pepper pine planet plum
prairie quartz raven reef ridge river robin saffron sage salmon sierra silver spruce stone summit
thistle thunder timber topaz tulip valley velvet violet walnut willow winter zinc
"""
_NAMES = """
ada alan amir anna bela boris carla chen clara dina dora elif emil erik fatima felix gita greta
hana hugo ida igor ines ivan jana joao kai kenji lara leon lina luca maya milan mira nadia nils
noor olga omar otto paula petra quinn rafa rosa samir sofia tara theo uma vera viktor wanda yara
yusuf zoe
"""
_CITIES = """
Aarhus Bergen Bilbao Cairo Cusco Dakar Delft Ghent Graz Izmir Kyoto Lagos Lima Lyon Malaga Nantes
Osaka Perth Porto Quito Riga Sofia Split Tartu Turin Utrecht Varna Zagreb
"""
WORDS = tuple(_WORDS.split())
NAMES = tuple(_NAMES.split())
CITIES = tuple(_CITIES.split())


def word(rng: random.Random) -> str:
    """A common word."""
    return rng.choice(WORDS)


def words(rng: random.Random, num: int) -> list[str]:
    """Different common words."""
    return rng.sample(WORDS, num)


def names(rng: random.Random, num: int) -> list[str]:
    """Different first names, lower case."""
    return rng.sample(NAMES, num)


def cities(rng: random.Random, num: int) -> list[str]:
    """Different cities."""
    return rng.sample(CITIES, num)


def ip(rng: random.Random) -> str:
    """A private address."""
    return f"10.{rng.randint(0, 3)}.{rng.randint(0, 9)}.{rng.randint(2, 250)}"


def date(rng: random.Random, *, year: int = 2024) -> str:
    """An ISO date of the year."""
    return f"{year}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def hexes(rng: random.Random, num_chars: int) -> str:
    """Random hexadecimal digits."""
    return "".join(rng.choices("0123456789abcdef", k=num_chars))


def text(rows: Iterable[object]) -> str:
    """Lines as a file's content."""
    return "".join(f"{row}\n" for row in rows)


def rows(values: Iterable[Iterable[object]], *, sep: str = ",") -> str:
    """Rows of a table without a header."""
    return text(sep.join(map(str, row)) for row in values)


def table(header: str, body: Iterable[Iterable[object]], *, sep: str = ",") -> str:
    """A table as a file's content; the header is written with commas and uses `sep` as well."""
    return header.replace(",", sep) + "\n" + rows(body, sep=sep)


def one(rng: random.Random, *texts: str) -> str:
    """One of several wordings."""
    return rng.choice(texts)
