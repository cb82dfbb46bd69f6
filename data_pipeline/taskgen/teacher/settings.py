"""What the teacher is told: where it is, how it samples, how long to wait, how much to spend."""

import dataclasses
import functools
import json
import math
import urllib.parse
from collections.abc import Iterator
from typing import Any

from data_pipeline import cli

# Fields of a request that are settings of their own, or that would change what comes back.
_RESERVED = (
    "model", "messages", "stream", "stream_options", "n",
    "temperature", "max_tokens", "max_completion_tokens",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one teacher.

    Only the model, the temperature, max_tokens and `extra` decide what a question is: replies in
    the cache stay good when any other setting changes.
    """

    base_url: str = dataclasses.field(
        default="http://localhost:8000/v1",
        metadata=cli.flag("the endpoint, up to and with /v1", changes_output=False),
    )
    model: str = dataclasses.field(default="", metadata=cli.flag("the model's name there"))
    api_key_env: str = dataclasses.field(
        default="OPENAI_API_KEY",
        metadata=cli.flag(
            "the environment variable that holds the key; may be unset for local servers",
            changes_output=False,
        ),
    )
    temperature: float = dataclasses.field(
        default=1.0, metadata=cli.flag("sampling temperature; below 0: the server's own default")
    )
    max_tokens: int = dataclasses.field(
        default=16_384, metadata=cli.flag("tokens of a reply, its reasoning included")
    )
    extra: str = dataclasses.field(
        default="",
        metadata=cli.flag('further fields of a request, as a JSON object: {"top_p": 0.95}'),
    )
    max_in_flight: int = dataclasses.field(
        default=16, metadata=cli.flag("requests at the same time", changes_output=False)
    )
    timeout_s: float = dataclasses.field(
        default=900.0, metadata=cli.flag("seconds for one whole reply", changes_output=False)
    )
    idle_timeout_s: float = dataclasses.field(
        default=120.0,
        metadata=cli.flag("seconds between two pieces of a streamed reply", changes_output=False),
    )
    max_attempts: int = dataclasses.field(
        default=8, metadata=cli.flag("times a question is sent at most", changes_output=False)
    )
    first_pause_s: float = dataclasses.field(
        default=1.0,
        metadata=cli.flag(
            "seconds before the second attempt; doubles up to a minute", changes_output=False
        ),
    )
    stream: bool = dataclasses.field(
        default=True,
        metadata=cli.flag(
            "take replies in pieces, so that a dead one is seen", changes_output=False
        ),
    )
    dollars_per_million_input: float = dataclasses.field(
        default=0.0, metadata=cli.flag("price of a million prompt tokens", changes_output=False)
    )
    dollars_per_million_output: float = dataclasses.field(
        default=0.0, metadata=cli.flag("price of a million reply tokens", changes_output=False)
    )
    max_dollars: float = dataclasses.field(
        default=0.0,
        metadata=cli.flag(
            "send nothing more once this is spent; 0: no limit", changes_output=False
        ),
    )
    max_total_tokens: int = dataclasses.field(
        default=0,
        metadata=cli.flag(
            "send nothing more once so many tokens, in and out, are used; 0: no limit",
            changes_output=False,
        ),
    )

    def __post_init__(self):
        faults = [*self._faults_of_the_endpoint(), *self._faults_of_numbers()]
        if faults:
            raise ValueError("; ".join(faults))

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The sampling options, as a request holds them."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens}
        if self.temperature >= 0:
            options["temperature"] = self.temperature
        return options | (json.loads(self.extra) if self.extra else {})

    def identity(self) -> dict[str, Any]:
        """What decides the replies, for a manifest."""
        return {"model": self.model, "sampling": self.options}

    @property
    def max_reply_bytes(self) -> int:
        """Where a reply is cut off that a server does not end at max_tokens.

        No tokenizer's tokens are 32 bytes long on average.
        """
        return 32 * self.max_tokens + 65_536

    def _faults_of_the_endpoint(self) -> Iterator[str]:
        if not self.model:
            yield "--model is not set; name the model as the endpoint does"
        parts = urllib.parse.urlsplit(self.base_url)
        if parts.username is not None or parts.password is not None or parts.query:
            # The value is not shown: what stands there may be a key.
            yield (
                "--base_url holds a user, a password or a query; a key belongs in the environment "
                f"variable --api_key_env={self.api_key_env}"
            )
        elif not _is_address(parts):
            yield f"--base_url={self.base_url!r} must look like http://HOST:PORT/v1"
        if self.extra:
            yield from self._faults_of_extra()

    def _faults_of_extra(self) -> Iterator[str]:
        try:
            extra = json.loads(self.extra)
        except ValueError as error:
            yield f"--extra={self.extra!r} must be a JSON object ({error})"
            return
        if not isinstance(extra, dict):
            yield f"--extra={self.extra!r} must be a JSON object"
        elif reserved := sorted(set(extra) & set(_RESERVED)):
            yield (
                f"--extra={self.extra!r} sets {', '.join(reserved)}, which the client sets itself; "
                "leave it out (temperature and max_tokens have flags of their own)"
            )

    def _faults_of_numbers(self) -> Iterator[str]:
        for name in ("max_tokens", "max_in_flight", "max_attempts"):
            if getattr(self, name) < 1:
                yield f"--{name}={getattr(self, name)} must be at least 1"
        for name in ("timeout_s", "idle_timeout_s", "first_pause_s"):
            if not 0 < getattr(self, name) < math.inf:
                yield f"--{name}={getattr(self, name)} must be above 0 and finite"
        prices = ("dollars_per_million_input", "dollars_per_million_output")
        for name in (*prices, "max_dollars", "max_total_tokens"):
            if not 0 <= getattr(self, name) < math.inf:
                yield f"--{name}={getattr(self, name)} must be 0 or more and finite"
        if not math.isfinite(self.temperature):
            yield f"--temperature={self.temperature} must be finite"
        if self.max_dollars and not any(getattr(self, name) for name in prices):
            yield (
                f"--max_dollars={self.max_dollars} needs prices: set --{prices[0]} and "
                f"--{prices[1]}, or limit --max_total_tokens instead"
            )


def _is_address(parts: urllib.parse.SplitResult) -> bool:
    try:
        port = parts.port
    except ValueError:  # none, or above 65535
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and not parts.fragment
    )
