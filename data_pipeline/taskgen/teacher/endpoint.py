"""One request to a chat-completions endpoint, and what became of it: a reply or a fault.

Nothing here waits or tries again, but for one thing: a server that refuses a field on which
servers differ is asked once more without it.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import httpx2

from data_pipeline.taskgen.teacher import api_key as api_key_module
from data_pipeline.taskgen.teacher import backoff, budget, faults
from data_pipeline.taskgen.teacher import question as question_module
from data_pipeline.taskgen.teacher import reply as reply_module
from data_pipeline.taskgen.teacher import settings as settings_module

_CONNECT_TIMEOUT_S = 30.0
_MOST_OF_AN_ERROR = 65_536  # bytes read of an error's body
_DONE = "[DONE]"
_LINGER_S = 1.0  # for the end of a body after its last piece


class _Faulty(Exception):
    """A fault on its way out of the nested reading of a response."""

    def __init__(self, kind: faults.Kind, text: str, *, retry_after_s: float = 0.0):
        super().__init__(text)
        self.kind: faults.Kind = kind
        self.text = text
        self.retry_after_s = retry_after_s


@dataclasses.dataclass
class _Exchange:
    """How far one request has come.

    Attributes:
        is_free: nothing of it is billed: the server never had it, or refused it.
        is_accepted: the server said 200.
    """

    assembly: reply_module.Assembly = dataclasses.field(default_factory=reply_module.Assembly)
    is_free: bool = False
    is_accepted: bool = False


class Endpoint:
    """An endpoint, with its connections; one for each event loop."""

    def __init__(self, settings: settings_module.Settings):
        """Read the key and make the client; connections are opened when they are needed.

        Raises:
            ValueError: a key that is none, or one inside the address; an address that is none.
        """
        self._settings = settings
        self._key = api_key_module.ApiKey(settings.api_key_env)
        if self._key.is_in(settings.base_url):
            raise ValueError(
                f"--base_url holds the key of ${settings.api_key_env}; take it out, it is sent as "
                "a header"
            )
        self._url = settings.base_url.rstrip("/") + "/chat/completions"
        try:
            httpx2.URL(self._url)
        except httpx2.InvalidURL as error:
            raise ValueError(
                f"--base_url={settings.base_url!r} is no address ({error}); it looks like "
                "http://HOST:PORT/v1"
            ) from None
        self._dialect = question_module.Dialect()
        self._ssl_context = httpx2.create_ssl_context()  # takes long, so all clients share it
        self._idle: list[httpx2.AsyncClient] = []  # the last one used, and still warm, at the end
        self._clients: list[httpx2.AsyncClient] = []

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.aclose()

    @contextlib.contextmanager
    def _client(self) -> Iterator[httpx2.AsyncClient]:
        """One that nobody else uses meanwhile, with one connection.

        A client of many connections asks the system about each of the idle ones before every
        request: about a fifth of what the request takes.
        """
        if not self._idle:
            self._clients.append(self._new_client())
            self._idle.append(self._clients[-1])
        client = self._idle.pop()
        try:
            yield client
        finally:
            self._idle.append(client)

    def _new_client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            # Compressed bodies would unpack past the limits on what is read.
            headers={"Accept-Encoding": "identity", **self._key.headers()},
            timeout=httpx2.Timeout(None, connect=_CONNECT_TIMEOUT_S),
            limits=httpx2.Limits(max_connections=1, max_keepalive_connections=1),
            follow_redirects=False,  # the key goes nowhere else
            verify=self._ssl_context,
        )

    async def send(self, question: question_module.Question) -> reply_module.Reply | faults.Fault:
        """Send the question once.

        A cancellation comes back as a fault of that kind: the caller notes what was spent, and
        raises it again.
        """
        while True:
            dialect = self._dialect
            outcome = await self._send(question, dialect)
            if not isinstance(outcome, faults.Fault) or outcome.kind != "bad_request":
                return outcome
            learnt = dialect.after_refusal(outcome.text)
            if learnt == dialect:
                return outcome
            if self._dialect == dialect:  # another question may have learnt more meanwhile
                self._dialect = learnt

    async def _send(
        self, question: question_module.Question, dialect: question_module.Dialect
    ) -> reply_module.Reply | faults.Fault:
        exchange = _Exchange()
        faulty = await self._caught(question, dialect, exchange)
        assembly = exchange.assembly
        # Whole but for its end: with the finish reason the text is complete, and paid.
        if faulty is None or assembly.finish_reason:
            return self._reply(question, assembly)
        return faults.Fault(
            kind=faulty.kind,
            text=self._key.redact(faulty.text),
            retry_after_s=faulty.retry_after_s,
            spend=self._billed(question, exchange, faulty.kind),
        )

    async def _caught(
        self,
        question: question_module.Question,
        dialect: question_module.Dialect,
        exchange: _Exchange,
    ) -> _Faulty | None:
        """Exchange request and response; the fault, if any, as a value.

        As a value since an exception would carry the HTTP library's own along, and with it the
        request's headers.
        """
        where, deadline = self._url, asyncio.timeout(self._settings.timeout_s)
        try:
            async with deadline:
                await self._exchange(question, dialect, exchange, deadline)
        except _Faulty as faulty:
            return faulty
        except asyncio.CancelledError:  # raised again once what it cost is noted
            return _Faulty("cancelled", f"{where}: the program stopped waiting")
        except TimeoutError:
            return _Faulty("timeout", f"{where}: {self._limits()}")
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.UnsupportedProtocol) as error:
            exchange.is_free = True
            return _Faulty("connection", f"{where}: no connection ({_told(error)})")
        except reply_module.MalformedError as error:
            return _Faulty("malformed", f"{where}: {error}")
        except reply_module.ErrorInStream as error:
            kind, message = faults.error_in_stream(error.error)
            return _Faulty(kind, f"{where}: {faults.shortened(self._key.redact(message))}")
        except httpx2.SSEError as error:
            return _Faulty("malformed", f"{where}: {_told(error)}")
        except httpx2.TransportError as error:
            kind = "cut_stream" if exchange.is_accepted else "connection"
            return _Faulty(kind, f"{where}: the connection was lost ({_told(error)})")
        except httpx2.DecodingError as error:
            return _Faulty("malformed", f"{where}: {_told(error)}")
        return None

    async def _exchange(
        self,
        question: question_module.Question,
        dialect: question_module.Dialect,
        exchange: _Exchange,
        deadline: asyncio.Timeout,
    ) -> None:
        body = question.body(stream=self._settings.stream, dialect=dialect)
        headers = {"Content-Type": "application/json"}
        with self._client() as client:
            async with client.stream("POST", self._url, content=body, headers=headers) as response:
                await self._take(response, exchange, deadline)

    async def _take(
        self, response: httpx2.Response, exchange: _Exchange, deadline: asyncio.Timeout
    ) -> None:
        if response.status_code != 200:
            exchange.is_free = True
            raise await self._refusal(response)
        exchange.is_accepted = True
        if response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            await self._read_stream(response, exchange.assembly, deadline)
        else:
            limit = 8 * self._settings.max_reply_bytes  # escapes and fields around the text
            text = await _read(response, limit)
            if text is None:
                raise reply_module.MalformedError(f"a body of more than {limit} bytes")
            exchange.assembly.add_body(self._key.redact(text))

    async def _read_stream(
        self,
        response: httpx2.Response,
        assembly: reply_module.Assembly,
        deadline: asyncio.Timeout,
    ) -> None:
        """Pieces until the end; a server that sends without end is left."""
        loop = asyncio.get_running_loop()
        end = deadline.when() or 0.0
        is_done = False
        async for event in httpx2.EventSource(response):
            if is_done:
                continue
            if event.data == _DONE:
                is_done = True
                assembly.finish_reason = assembly.finish_reason or "unknown"
                # The body is read to its end, or the connection could not be used again.
                deadline.reschedule(min(end, loop.time() + _LINGER_S))
                continue
            assembly.add_piece(self._key.redact(event.data))
            if assembly.num_bytes > self._settings.max_reply_bytes:
                assembly.finish_reason = "length"
                return
            # Before the first piece the question may wait in the server's queue: no idle limit.
            deadline.reschedule(min(end, loop.time() + self._settings.idle_timeout_s))
        if not assembly.finish_reason:
            raise _Faulty("cut_stream", f"{self._url}: the stream ended before the reply did")

    async def _refusal(self, response: httpx2.Response) -> _Faulty:
        body = await _read(response, _MOST_OF_AN_ERROR)
        message = self._key.redact(faults.message_of(body or ""))
        status = response.status_code
        kind = faults.kind_of(status, message)
        message = faults.shortened(message)
        told = f"{self._url}: status {status}: {message or 'no reason told'}"
        if kind == "unauthorized":
            told += f" (sent {self._key.told}; set --api_key_env)"
        elif kind == "not_found":
            told += f" (is --model={self._settings.model} served there? --base_url ends in /v1?)"
        elif 300 <= status < 400:
            told += " (a redirect, which is not followed; set --base_url to where it leads)"
        return _Faulty(kind, told, retry_after_s=backoff.retry_after_s(response.headers))

    def _limits(self) -> str:
        settings = self._settings
        return (
            f"no whole reply within --timeout_s={settings.timeout_s:g}, or no piece of it within "
            f"--idle_timeout_s={settings.idle_timeout_s:g}"
        )

    def _reply(
        self, question: question_module.Question, assembly: reply_module.Assembly
    ) -> reply_module.Reply:
        input_tokens, output_tokens, estimated = assembly.tokens(question)
        spend = budget.price(self._settings, input_tokens=input_tokens, output_tokens=output_tokens)
        return reply_module.Reply(
            text=self._key.redact(assembly.text),  # it may have come in pieces
            reasoning=self._key.redact(assembly.reasoning),
            finish_reason=assembly.finish_reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached=False,
            dollars=spend.dollars,
            estimated=estimated,
        )

    def _billed(
        self, question: question_module.Question, exchange: _Exchange, kind: faults.Kind
    ) -> budget.Spend:
        """What a request without a reply costs: nothing where it was refused, else what came."""
        if exchange.is_free:
            return budget.Spend()
        input_tokens, output_tokens, _ = exchange.assembly.tokens(question)
        if not self._settings.stream and kind != "malformed":
            output_tokens = self._settings.max_tokens  # unseen, and at most
        return budget.price(self._settings, input_tokens=input_tokens, output_tokens=output_tokens)


async def _read(response: httpx2.Response, limit: int) -> str | None:
    """The body as text; None where it is longer than `limit` bytes."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > limit:
            return None
    return body.decode("utf-8", "replace")


def _told(error: Any) -> str:
    return str(error) or type(error).__name__
