"""What a rollout is told: each setting declared once, checked where it is made."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

from data_pipeline import cli

Parser = Literal["json", "xml"]
LOCAL = "local"


def _neutral(help: str) -> dict[str, Any]:
    """The metadata of a flag that another run of the same rollout may change."""
    return cli.flag(help, changes_output=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """What a rollout is told."""

    model: str = dataclasses.field(
        default="",
        metadata=cli.flag(
            "the model's name at --base_url; without one a name of LiteLLM's, as provider/name"
        ),
    )
    base_url: str = dataclasses.field(
        default="",
        metadata=_neutral(
            "an OpenAI-compatible server (vLLM, SGLang, transformers serve, ...): http://HOST:8000/v1"
        ),
    )
    api_key_env: str = dataclasses.field(
        default="OPENAI_API_KEY",
        metadata=_neutral(
            "the environment variable that holds the server's key; the key itself is handed on in "
            "the environment alone and written nowhere"
        ),
    )
    environment: str = dataclasses.field(
        default=LOCAL,
        metadata=cli.flag(
            "where the agent's shell runs: local (bubblewrap), one of Harbor's (podman, docker, "
            "daytona, ...), or module:Class"
        ),
    )
    environment_options: str = dataclasses.field(
        default="{}", metadata=cli.flag("settings of the environment, as a JSON object")
    )
    compose: tuple[str, ...] = dataclasses.field(
        default=(),
        metadata=cli.flag(
            "Compose files laid over those of each task, for podman and docker: network_mode, say"
        ),
    )
    attempts: int = dataclasses.field(default=1, metadata=cli.flag("trials of each task"))
    num_tasks: int = dataclasses.field(
        default=0, metadata=cli.flag("only so many of the tasks, drawn by --seed; 0 takes all")
    )
    seed: int = dataclasses.field(default=0, metadata=cli.flag("of the draw of --num_tasks"))
    concurrency: int = dataclasses.field(
        default=4,
        metadata=_neutral(
            "trials at a time. Above what the server answers at full speed each only waits longer, "
            "and its agent runs out of time"
        ),
    )
    agent_timeout_multiplier: float = dataclasses.field(
        default=4.0,
        metadata=cli.flag(
            "times the agent's timeout of each task, so that waiting for a slow server does not "
            "fail it; an evaluation of a model takes 1"
        ),
    )
    other_timeout_multiplier: float = dataclasses.field(
        default=2.0,
        metadata=cli.flag("times the timeouts of builds, of the agent's setup and of the tests"),
    )
    request_timeout_s: float = dataclasses.field(
        default=1800.0, metadata=cli.flag("seconds that one request to the model may take")
    )
    max_turns: int = dataclasses.field(
        default=0, metadata=cli.flag("replies of the agent in a trial; 0 for no limit")
    )
    parser: Parser = dataclasses.field(
        default="json", metadata=cli.flag("the format that Terminus 2 asks replies in")
    )
    temperature: float = dataclasses.field(
        default=-1.0, metadata=cli.flag("of sampling; negative leaves it to the server")
    )
    max_tokens: int = dataclasses.field(
        default=0,
        metadata=cli.flag(
            "tokens of a reply, thinking included; 0 leaves it to the server. Be ample: a reply "
            "that is cut is asked for again until the agent's time is over"
        ),
    )
    sampling: str = dataclasses.field(
        default="{}",
        metadata=cli.flag(
            'further options of each request, as JSON: {"top_p": 0.95, "extra_body": {"top_k": 20}}'
        ),
    )
    context_tokens: int = dataclasses.field(
        default=0,
        metadata=cli.flag(
            "tokens that the model can read; near them the history is summarised. 0 asks the "
            "server, and assumes a million where it does not say"
        ),
    )
    summarize: bool = dataclasses.field(
        default=True,
        metadata=cli.flag("summarise a history that grows too long; else the trial ends there"),
    )
    interleaved_thinking: bool = dataclasses.field(
        default=False, metadata=cli.flag("send earlier turns' reasoning back to the model")
    )
    dollars_per_million_input: float = dataclasses.field(
        default=0.0, metadata=cli.flag("price of a million tokens read; 0: LiteLLM's, or none")
    )
    dollars_per_million_output: float = dataclasses.field(
        default=0.0, metadata=cli.flag("price of a million tokens written")
    )
    max_retries: int = dataclasses.field(
        default=3,
        metadata=_neutral("times that a trial is tried again after a failure of infrastructure"),
    )
    max_failed_share: float = dataclasses.field(
        default=0.1,
        metadata=_neutral(
            "share of trials that may end by a failure which was not the agent's; above it the "
            "rollout counts as unfinished, and the same command does them again"
        ),
    )
    timeout_warning_share: float = dataclasses.field(
        default=0.1, metadata=_neutral("share of trials out of the agent's time to warn from")
    )
    server_grace_s: float = dataclasses.field(
        default=600.0,
        metadata=_neutral("seconds that the server may be gone before the rollout is stopped"),
    )
    harbor: str = dataclasses.field(
        default="", metadata=_neutral("the program `harbor`; unset looks in PATH and ~/.local/bin")
    )

    def __post_init__(self):
        cli.require(bool(self.model), "--model is not set; name the model that solves the tasks")
        cli.require_choice("parser", self.parser, Parser)
        for name in ("attempts", "concurrency"):
            self._require(name, getattr(self, name) >= 1, "be at least 1")
        for name in ("num_tasks", "max_turns", "max_tokens", "context_tokens", "max_retries"):
            self._require(name, getattr(self, name) >= 0, "not be negative")
        for name in (
            "agent_timeout_multiplier", "other_timeout_multiplier", "request_timeout_s",
        ):  # fmt: skip
            self._require(name, getattr(self, name) > 0, "be positive")
        for name in ("max_failed_share", "timeout_warning_share"):
            self._require(name, 0 <= getattr(self, name) <= 1, "be in [0, 1]")
        self._require(
            "base_url",
            not self.base_url or self.base_url.startswith(("http://", "https://")),
            "begin with http:// or https://",
        )
        self._require(
            "model",
            bool(self.base_url) or "/" in self.model,
            "be provider/name where no --base_url is set",
        )
        for name in self.compose:
            cli.require(pathlib.Path(name).is_file(), f"--compose={name}: no such file")
        self.environment_settings()
        self.request_options()

    def _require(self, name: str, condition: bool, rule: str) -> None:
        cli.require(condition, f"--{name}={getattr(self, name)} must {rule}")

    def environment_settings(self) -> Mapping[str, Any]:
        """The object that --environment_options holds."""
        return _object("environment_options", self.environment_options)

    def request_options(self) -> Mapping[str, Any]:
        """What each request carries beside the messages."""
        said = dict(_object("sampling", self.sampling))
        return said | ({"max_tokens": self.max_tokens} if self.max_tokens else {})


def _object(name: str, text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--{name}={text} is no JSON ({error})") from error
    cli.require(isinstance(value, dict), f"--{name}={text} must be a JSON object")
    return value
