"""The key of an endpoint: read from the environment, shown to nobody but the endpoint."""

import os

_MASK = "[key]"
# Shorter ones ("EMPTY", "ollama") are placeholders for servers that ask for none; taking those out
# of replies would damage them.
_SHORTEST_SECRET = 12


class ApiKey:
    """A key that does not print.

    It is kept out of reprs, logs, errors and the cache; `redact` takes it out of what a server
    said, since some repeat the key that they got.
    """

    def __init__(self, variable: str):
        """Read it.

        Args:
            variable: of the environment; unset or empty for endpoints that ask for no key.

        Raises:
            ValueError: what stands there cannot be a key; its value is not told.
        """
        self._variable = variable
        self._value = os.environ.get(variable, "").strip()
        if any(not "!" <= character <= "~" for character in self._value):
            raise ValueError(
                f"${variable} (--api_key_env) holds spaces or characters that are not ASCII, which "
                "no key does; set it again"
            )

    def __repr__(self) -> str:
        return f"ApiKey(${self._variable}, {'set' if self._value else 'unset'})"

    @property
    def told(self) -> str:
        """How an error speaks of it."""
        return (
            f"the key in ${self._variable}"
            if self._value
            else f"no key (${self._variable} is unset)"
        )

    def headers(self) -> dict[str, str]:
        """The header that shows it to the endpoint."""
        return {"Authorization": f"Bearer {self._value}"} if self._value else {}

    def is_in(self, text: str) -> bool:
        """Whether the key stands in a text."""
        return self._is_secret and self._value in text

    def redact(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._value, _MASK) if self._is_secret else text

    @property
    def _is_secret(self) -> bool:
        return len(self._value) >= _SHORTEST_SECRET
