"""A teacher that reads its lines from a file: a small server of the chat-completions protocol.

    python -m data_pipeline.taskgen.scripted_teacher SCRIPT.toml [--port=0] [--log=FILE]

It listens on this machine alone and prints its address. No model runs in it: teacher_script.py
says how a script decides what is answered, and which faults are played. The demo and the tests
ask it over real sockets. The log has two lines of JSON for each request: one when it came, with
its body (never its headers), one when it ended, with the tokens that an endpoint would bill.
"""

import contextlib
import dataclasses
import http.server
import json
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import flags

from data_pipeline import cli
from data_pipeline.taskgen import scripted_reply, teacher_script

_LARGEST_BODY = 64 << 20  # bytes of a request
_MISSING = "no rule of the script matches this question"

type _Json = dict[str, Any]


class Log:
    """What was really sent, a line of JSON an event."""

    def __init__(self, path: pathlib.Path | None):
        """Append to a file; None: keep no log."""
        self._file = path.open("a", encoding="utf-8") if path else None
        self._lock = threading.Lock()
        self._num_requests = 0
        self._start_s = time.monotonic()

    def came(self, event: _Json) -> int:
        """Note a request; returns its number."""
        with self._lock:
            self._num_requests += 1
            number = self._num_requests
            self._write({"event": "came", "request": number} | event)
        return number

    def ended(self, number: int, event: _Json) -> None:
        """Note how it ended."""
        with self._lock:
            self._write({"event": "ended", "request": number} | event)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file:
                self._file.close()
            self._file = None

    def _write(self, event: _Json) -> None:
        if self._file:
            now_s = round(time.monotonic() - self._start_s, 4)
            self._file.write(json.dumps({"time_s": now_s} | event) + "\n")
            self._file.flush()


@dataclasses.dataclass
class _Sent:
    """How much of a reply went out."""

    outcome: str = "whole"
    num_words: int = 0


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an endless reply ends when its reader leaves, or with the process
    request_queue_size = 256

    def __init__(self, port: int, player: teacher_script.Player, log: Log):
        self.player = player
        self.log = log
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error of ours."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and the first piece in one packet; flushed after each piece
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """The log is another."""

    def do_GET(self) -> None:
        """/v1/models."""
        if self.path.rstrip("/") != "/v1/models":
            self._send_error(404, f"no such path: {self.path}")
            return
        model = {"id": self.server.player.script.model, "object": "model", "owned_by": "script"}
        self._send_json(200, {"object": "list", "data": [model]})

    def do_POST(self) -> None:
        """/v1/chat/completions."""
        body = self._body()
        if body is None:
            return
        player, log = self.server.player, self.server.log
        authorization = self.headers.get("Authorization", "")
        is_let_in = player.script.api_key in ("", authorization.removeprefix("Bearer "))
        answer = player.answer(body) if is_let_in else None
        number = log.came({
            "rule": answer.rule if answer else None,
            "turn": answer.turn if answer else None,
            "digest": answer.digest if answer else None,
            "fault": answer.fault.kind if answer and answer.fault else None,
            "is_authorized": bool(authorization),
            "connection": self.client_address[1],
            "body": body,
        })  # fmt: skip
        sent = _Sent(outcome="refused")
        num_input_words = scripted_reply.words_of_question(body)
        try:
            if not is_let_in:
                # Hosted endpoints repeat the key, too.
                self._send_error(401, f"Incorrect API key provided: {authorization[7:]}")
            elif answer is None:
                self._send_error(400, _MISSING)
            elif not self._refuse(answer.fault, body):
                sent.outcome = "whole"
                self._send_reply(answer, body, sent)
        except ConnectionError:
            sent.outcome = "client left"
            self.close_connection = True
        finally:
            billed = 0 if sent.outcome == "refused" else num_input_words
            log.ended(
                number,
                {"outcome": sent.outcome, "input_tokens": billed, "output_tokens": sent.num_words},
            )

    def _body(self) -> _Json | None:
        """The request's body; None where it was refused."""
        length = int(self.headers.get("Content-Length", "0"))
        if self.path.rstrip("/") != "/v1/chat/completions" or length > _LARGEST_BODY:
            self.close_connection = True  # its body is left unread
            self._send_error(404, f"no such path: {self.path}")
            return None
        try:
            body = json.loads(self.rfile.read(length))
        except ValueError:
            body = None
        if not isinstance(body, dict) or not _are_messages(body.get("messages")):
            self._send_error(400, "the body must be an object with a list of `messages`")
            return None
        return body

    def _refuse(self, fault: teacher_script.Fault | None, body: _Json) -> bool:
        """Play the faults that come before a reply; whether that was all."""
        if fault is None:
            return False
        if fault.kind == "delay":
            time.sleep(fault.delay_s)
        elif fault.kind == "disconnect":
            self._hang_up()
            return True
        elif fault.kind == "refuse_field":
            self._send_error(400, f"{fault.message}: {fault.field}")
            return True
        elif fault.kind == "status":
            waits = {"Retry-After": f"{fault.retry_after_s:g}"} if fault.retry_after_s else {}
            self._send_error(fault.status, fault.message, waits)
            return True
        return False

    def _send_reply(self, answer: teacher_script.Answer, body: _Json, sent: _Sent) -> None:
        text, finish_reason = answer.text, "stop"
        words = scripted_reply.words_of(text)
        most = body.get("max_tokens") or body.get("max_completion_tokens") or len(words)
        if answer.fault and answer.fault.kind == "length":
            most = len(words) // 2
        if len(words) > most and not (answer.fault and answer.fault.kind == "endless"):
            text, finish_reason = "".join(words[:most]), "length"
        reply = scripted_reply.ScriptedReply(
            self.server.player.script, body, text, answer.reasoning, finish_reason
        )
        if body.get("stream"):
            self._stream(reply, answer.fault, sent)
        else:
            self._send_whole(reply, answer.fault, sent)

    def _send_whole(
        self, reply: scripted_reply.ScriptedReply, fault: teacher_script.Fault | None, sent: _Sent
    ) -> None:
        kind = fault.kind if fault else ""
        if kind == "error_in_stream":
            sent.outcome = "refused"
            self._send_error(500, "a fault of the script")
            return
        if fault and kind in ("stall", "slow"):
            time.sleep(fault.delay_s)
        sent.num_words = reply.num_words
        data = json.dumps(reply.body()).encode()
        if kind == "malformed":
            data = data[:-20]
        if kind == "endless":
            self._begin_chunks("application/json")
            while True:
                self._chunk(b" " * 65536)
        self._head(200, "application/json", {"Content-Length": str(len(data))})
        if kind == "cut":
            sent.outcome = "cut"
            self.wfile.write(data[: len(data) // 2])
            self._hang_up()
            return
        self.wfile.write(data)

    def _stream(
        self, reply: scripted_reply.ScriptedReply, fault: teacher_script.Fault | None, sent: _Sent
    ) -> None:
        kind, pieces = fault.kind if fault else "", list(reply.pieces())
        self._begin_chunks("text/event-stream")
        for number, (piece, num_words) in enumerate(pieces):
            if fault and number == len(pieces) // 2 and self._play_in_the_middle(fault, sent):
                return
            if fault and kind == "slow":
                time.sleep(fault.delay_s)
            self._chunk(_event(piece))
            sent.num_words += num_words
        while kind == "endless":
            self._chunk(_event(reply.piece({"content": "and so on " * scripted_reply.PIECE_WORDS})))
            sent.num_words += 3 * scripted_reply.PIECE_WORDS
        for piece in reply.last_pieces():
            self._chunk(_event(piece))
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _play_in_the_middle(self, fault: teacher_script.Fault, sent: _Sent) -> bool:
        """Play the faults in the middle of a stream; whether it ends there."""
        if fault.kind == "stall":
            time.sleep(fault.delay_s)
        elif fault.kind == "cut":
            sent.outcome = "cut"
            self._hang_up()
            return True
        elif fault.kind in ("malformed", "error_in_stream"):
            sent.outcome = "cut"
            error = {"error": {"message": "a fault of the script", "code": 500}}
            event = _event(error)
            self._chunk(event if fault.kind == "error_in_stream" else event.replace(b"}", b""))
            self._chunk(b"")
            return True
        return False

    def _send_error(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        error = {"message": message, "type": "scripted", "code": status}
        self._send_json(status, {"error": error}, headers)

    def _send_json(self, status: int, value: _Json, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        length = {"Content-Length": str(len(data))}
        self._head(status, "application/json", length | (headers or {}))
        self.wfile.write(data)

    def _head(self, status: int, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": content_type} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def _begin_chunks(self, content_type: str) -> None:
        self._head(200, content_type, {"Transfer-Encoding": "chunked"})

    def _chunk(self, data: bytes) -> None:
        """One chunk of a body whose length is not told; an empty one ends it."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving(
    script: teacher_script.Script, *, port: int = 0, log_path: pathlib.Path | None = None
) -> Iterator[str]:
    """Serve a script from a thread of this process; yields the base URL, up to and with /v1."""
    log = Log(log_path)
    server = _Server(port, teacher_script.Player(script), log)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        log.close()


def _event(value: _Json) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) for message in value)
    )


def _main(argv: list[str]) -> None:
    if len(argv) != 1:
        raise ValueError(f"name one script, not {len(argv)}")
    script = teacher_script.read(pathlib.Path(argv[0]))
    log_path = pathlib.Path(flags.FLAGS.log) if flags.FLAGS.log else None
    with serving(script, port=flags.FLAGS.port, log_path=log_path) as url:
        print(url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    flags.DEFINE_integer("port", 0, "the port to listen on; 0: any that is free")
    flags.DEFINE_string("log", "", "a file to append a line of JSON to for each event")
    cli.run(_main)
