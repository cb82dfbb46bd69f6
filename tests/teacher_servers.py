"""Scripted teachers for tests: served over real sockets, and what was really sent to them."""

import asyncio
import collections
import contextlib
import json
import pathlib
import threading
import time
import tomllib

from data_pipeline.taskgen import scripted_teacher, teacher, teacher_script

_WORDS = "and these are words to come in some pieces of a stream " * 4 + "end"
ANSWERS = f"""
[[rule]]
match = 'number (?P<n>\\d+)'
template = true
texts = ['answer {{{{n}}}} {_WORDS}']
"""


def answer(number):
    """The whole text that ANSWERS gives."""
    return (
        f"answer {number} " + "and these are words to come in some pieces of a stream " * 4 + "end"
    )


def ask_number(number):
    """The messages that ANSWERS answers."""
    return [{"role": "user", "content": f"number {number}"}]


class Served:
    """A scripted teacher that is running."""

    def __init__(self, url, log_path):
        self.url = url
        self.log_path = log_path

    def events(self, kind):
        """The log's lines of a kind, "came" or "ended".

        A client may have its reply before the server has noted so: its line is waited for.
        """
        patience = time.monotonic() + 5
        while True:
            lines = [json.loads(line) for line in self.log_path.read_text().splitlines()]
            by_kind = {k: [e for e in lines if e["event"] == k] for k in ("came", "ended")}
            is_whole = len(by_kind["ended"]) == len(by_kind["came"])
            if kind == "came" or is_whole or time.monotonic() > patience:
                return by_kind[kind]
            time.sleep(0.02)

    def num_sent(self):
        """Requests that reached the server."""
        return len(self.events("came"))

    def billed(self):
        """Tokens that an endpoint would bill, of the requests that ended."""
        return sum(e["input_tokens"] + e["output_tokens"] for e in self.events("ended"))

    def asked(self):
        """How often each question came, by the text of its last message."""
        return collections.Counter(
            e["body"]["messages"][-1]["content"] for e in self.events("came")
        )

    def settings(self, **changes):
        """Settings of a client of it, with short pauses."""
        told = {"first_pause_s": 0.01, "timeout_s": 20.0, "idle_timeout_s": 10.0} | changes
        return teacher.Settings(
            base_url=self.url, model="scripted", max_tokens=told.pop("max_tokens", 400), **told
        )


@contextlib.contextmanager
def served(script, folder: pathlib.Path):
    """Serve the text of a script."""
    parsed = teacher_script.script_from(tomllib.loads(script), folder=folder)
    log_path = folder / "server.jsonl"
    with scripted_teacher.serving(parsed, log_path=log_path) as url:
        yield Served(url, log_path)


def asked(settings, cache_path, *questions, salt=""):
    """Ask questions at the same time; replies and exceptions in order, and the teacher."""

    async def run():
        async with teacher.Teacher(settings, cache_path) as client:
            asking = (client.ask(question, salt=salt) for question in questions)
            return await asyncio.gather(*asking, return_exceptions=True), client

    return asyncio.run(run())


@contextlib.contextmanager
def speaking(*connections):
    """A server that says exactly these bytes, a list of writes for each connection in turn."""
    waiting = list(connections)

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            await reader.readexactly(length)
            for data in waiting.pop(0):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
