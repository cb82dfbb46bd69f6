"""An OpenAI-compatible server of a model: whether it answers, and how much its model can read."""

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

_TIMEOUT_S = 20.0
_LENGTH_NAMES = ("max_model_len", "context_length", "max_context_length")  # vLLM, SGLang, others


def check(base_url: str, *, model: str, api_key_env: str) -> int:
    """The tokens that the model can read; 0 where the server does not say.

    Raises:
        ValueError: the server does not answer, refuses the key, or has no such model.
    """
    try:
        listed = _models(base_url, api_key_env)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ValueError(
                f"--base_url={base_url} refuses the key (HTTP {error.code}); the environment "
                f"variable {api_key_env}, which --api_key_env names, must hold it"
            ) from error
        return 0  # it answers; not every server lists its models
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--base_url={base_url} does not answer ({error}); start the server, or name another"
        ) from error
    names = [one["id"] for one in listed]
    if names and model not in names:
        raise ValueError(
            f"--model={model} is not served at --base_url={base_url}; it has {', '.join(names[:9])}"
        )
    of_model = next((one for one in listed if one["id"] == model), {})
    lengths = (of_model.get(name) for name in _LENGTH_NAMES)
    return next((n for n in lengths if type(n) is int and n > 0), 0)


def _models(base_url: str, api_key_env: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models")
    if key := os.environ.get(api_key_env):
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
        body = json.loads(answer.read())
    found = body.get("data") if isinstance(body, dict) else None
    return [one for one in found or () if isinstance(one, dict) and isinstance(one.get("id"), str)]


class Watch:
    """Looks now and then whether a server still answers."""

    def __init__(self, base_url: str, *, api_key_env: str, grace_s: float):
        """Watch `base_url`, and bear `grace_s` seconds without an answer."""
        self._base_url, self._api_key_env, self._grace_s = base_url, api_key_env, grace_s
        self._seen = self._looked = time.monotonic()

    def look(self) -> None:
        """Ask the server, if the last time is long ago.

        Raises:
            ValueError: it has not answered for the time of grace.
        """
        now = time.monotonic()
        if not self._base_url or now - self._looked < min(30.0, self._grace_s / 4):
            return
        self._looked = now
        try:
            _models(self._base_url, self._api_key_env)
        except (urllib.error.HTTPError, ValueError):
            self._seen = now  # an answer all the same
        except OSError as error:
            if now - self._seen > self._grace_s:
                raise ValueError(
                    f"--base_url={self._base_url} has not answered for {now - self._seen:.0f} s "
                    f"({error}); start the server, and the same command goes on"
                ) from error
        else:
            self._seen = now
