"""Every fault of an endpoint, played over real sockets; the oracle is the server's own log."""

import asyncio
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import teacher_servers as servers

from data_pipeline.taskgen import teacher

NUM_QUESTIONS = 12
QUESTIONS = [servers.ask_number(n) for n in range(NUM_QUESTIONS)]


def fault(kind, **told):
    """The TOML of a fault of the rule before it."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in {"kind": kind, **told}.items()]
    return "\n".join(["[[rule.fault]]", *lines, ""])


# Those after which a question is sent again, with how often each question meets them.
PASSING = {
    "429": fault("status", status=429, each="question", times=2),
    "429 with Retry-After": fault("status", status=429, retry_after_s=0.2, times=3),
    "500": fault("status", status=500, each="question", times=2),
    "503": fault("status", status=503, each="question"),
    "disconnect": fault("disconnect", each="question"),
    "cut stream": fault("cut", each="question", times=2),
    "malformed": fault("malformed", each="question", times=2),
    "error in stream": fault("error_in_stream", each="question"),
    "all of them": "".join(
        fault(kind, each="question")
        for kind in ("status", "cut", "malformed", "disconnect", "error_in_stream")
    ),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", PASSING)
def test_no_question_is_lost_and_none_is_paid_again(name, stream, tmp_path):
    with servers.served(servers.ANSWERS + PASSING[name], tmp_path) as server:
        settings = server.settings(stream=stream, max_in_flight=4)
        replies, client = servers.asked(settings, tmp_path / "cache", *QUESTIONS)
        assert [reply.text for reply in replies] == [servers.answer(n) for n in range(12)]
        num_sent = server.num_sent()
        faulty = sum(event["fault"] is not None for event in server.events("came"))
        assert num_sent == NUM_QUESTIONS + faulty and faulty >= 3
        # Where the endpoint bills for what it could not deliver, that is counted, too.
        assert client.spent.tokens >= server.billed()

        again, later = servers.asked(settings, tmp_path / "cache", *QUESTIONS)
        assert server.num_sent() == num_sent
        assert all(reply.cached for reply in again)
        assert [r.text for r in again] == [r.text for r in replies]
        assert later.spent == client.spent


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "status, kind", [(400, "bad_request"), (401, "unauthorized"), (402, "quota"),
                     (403, "unauthorized"), (404, "not_found"), (413, "context_too_long"),
                     (422, "bad_request")]
)  # fmt: skip
def test_what_no_attempt_mends_is_sent_once_and_costs_nothing(status, kind, stream, tmp_path):
    script = servers.ANSWERS + fault("status", status=status, times=0)
    with servers.served(script, tmp_path) as server:
        (error,), client = servers.asked(
            server.settings(stream=stream), tmp_path / "cache", QUESTIONS[0]
        )
        assert isinstance(error, teacher.TeacherError) and error.kind == kind
        assert str(status) in str(error) and "a fault of the script" in str(error)
        assert error.is_final == (kind in ("bad_request", "context_too_long"))
        assert error.affects_all == (kind in ("unauthorized", "quota", "not_found"))
        assert server.num_sent() == 1
        assert client.spent.tokens == 0


@pytest.mark.parametrize("kind", ["status", "cut", "malformed", "disconnect"])
def test_a_fault_that_stays_ends_after_the_last_attempt_and_leaves_the_question_open(
    kind, tmp_path
):
    with servers.served(servers.ANSWERS + fault(kind, times=0), tmp_path) as server:
        settings = server.settings(max_attempts=3)
        (error,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        assert isinstance(error, teacher.TeacherError)
        assert not error.is_final and "after 3 attempts" in str(error)
        assert server.num_sent() == 3
    with servers.served(servers.ANSWERS, tmp_path) as server:
        (reply,), _ = servers.asked(server.settings(), tmp_path / "cache", QUESTIONS[0])
        assert reply.text == servers.answer(0)


def test_nobody_asks_before_the_server_allows_it(tmp_path):
    script = servers.ANSWERS + fault("status", status=429, retry_after_s=1, times=1)
    with servers.served(script, tmp_path) as server:
        settings = server.settings(max_in_flight=1)
        replies, _ = servers.asked(settings, tmp_path / "cache", *QUESTIONS[:4])
        assert [reply.text for reply in replies] == [servers.answer(n) for n in range(4)]
        refused, *others = (event["time_s"] for event in server.events("came"))
    assert len(others) == 4 and min(others) >= refused + 1.0  # the other questions, too


def test_a_server_that_asks_to_wait_for_too_long_is_not_waited_for(tmp_path):
    script = servers.ANSWERS + fault("status", status=429, retry_after_s=3600, times=0)
    with servers.served(script, tmp_path) as server:
        (error,), _ = servers.asked(server.settings(), tmp_path / "cache", QUESTIONS[0])
        assert error.kind == "rate_limited" and "3600 s" in str(error)
        assert not error.is_final
        assert server.num_sent() == 1


def test_endless_output_is_cut_told_and_kept(tmp_path):
    with servers.served(servers.ANSWERS + fault("endless", times=0), tmp_path) as server:
        settings = server.settings(max_tokens=50)
        (reply,), client = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        assert reply.finish_reason == "length" and reply.estimated
        assert len(reply.text) <= settings.max_reply_bytes + 1000
        assert client.spent.tokens > 0
        (again,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        assert again.cached and again.finish_reason == "length"
        assert server.num_sent() == 1


def test_endless_output_that_is_not_streamed_is_left(tmp_path):
    script = servers.ANSWERS + fault("endless", times=1)
    with servers.served(script, tmp_path) as server:
        settings = server.settings(max_tokens=50, stream=False)
        (reply,), client = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        assert reply.text.startswith("answer 0") and client.counts["malformed"] == 1
        assert server.num_sent() == 2


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_reply_cut_at_its_limit_of_tokens_says_so(stream, tmp_path):
    with servers.served(servers.ANSWERS + fault("length", times=0), tmp_path) as server:
        (reply,), _ = servers.asked(server.settings(stream=stream), tmp_path / "c", QUESTIONS[0])
        assert reply.finish_reason == "length"
        assert servers.answer(0).startswith(reply.text) and reply.text != servers.answer(0)
        assert server.num_sent() == 1


@pytest.mark.parametrize(
    "played, limits",
    [
        (fault("slow", delay_s=0.3, times=1), {"timeout_s": 0.8}),
        (fault("stall", delay_s=3, times=1), {"idle_timeout_s": 0.3}),
        (fault("delay", delay_s=3, times=1), {"timeout_s": 0.5}),
        (fault("delay", delay_s=3, times=1), {"timeout_s": 0.5, "stream": False}),
    ],
    ids=["slow to the end", "silent in the middle", "silent", "silent, not streamed"],
)
def test_a_slow_server_is_left_and_asked_again(played, limits, tmp_path):
    with servers.served(servers.ANSWERS + played, tmp_path) as server:
        start_s = time.monotonic()
        (reply,), client = servers.asked(server.settings(**limits), tmp_path / "c", QUESTIONS[0])
        assert reply.text == servers.answer(0)
        assert client.counts == {"timeout": 1, "answered": 1}
        assert server.num_sent() == 2
        assert time.monotonic() - start_s < 2.5


def test_a_server_that_is_slow_within_the_limits_is_waited_for(tmp_path):
    # The idle limit begins with the first piece: before it the question may wait in a queue.
    script = servers.ANSWERS + fault("delay", delay_s=0.8, times=0)
    with servers.served(script, tmp_path) as server:
        settings = server.settings(idle_timeout_s=0.3)
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        assert reply.text == servers.answer(0) and server.num_sent() == 1


def test_a_server_that_is_not_there_costs_nothing(tmp_path):
    with servers.served(servers.ANSWERS, tmp_path) as server:
        settings = server.settings(max_attempts=2)
    (error,), client = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert error.kind == "connection" and "no connection" in str(error)
    assert client.spent.tokens == 0


# The client as a process of its own, which prints a number once its reply has come.
CLIENT = """
import asyncio, pathlib, sys
from data_pipeline.taskgen import teacher

async def main(url, cache, num_questions, max_total_tokens):
    settings = teacher.Settings(base_url=url, model="scripted", max_tokens=100, max_in_flight=4,
                                first_pause_s=0.01, max_total_tokens=max_total_tokens)
    async with teacher.Teacher(settings, pathlib.Path(cache)) as client:
        async def ask(n):
            try:
                await client.ask([{"role": "user", "content": f"number {n}"}])
            except teacher.BudgetExceeded:
                return
            print(n, flush=True)
        await asyncio.gather(*map(ask, range(num_questions)))
    print("spent", client.spent.tokens)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""
IN_FLIGHT = 4


class Client:
    """Runs of CLIENT with one cache."""

    def __init__(self, server, tmp_path, *, num_questions, max_total_tokens=0):
        self._server = server
        self._arguments = [server.url, str(tmp_path / "cache"), str(num_questions)]
        self._arguments.append(str(max_total_tokens))
        self._output = tmp_path / "replies.txt"

    def run(self, *, kill_after=None):
        """Run until it ends, or is killed when so many more requests have come to the server."""
        num_before = self._server.num_sent()
        with self._output.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", CLIENT, *self._arguments],
                stdout=output,
                cwd=pathlib.Path(__file__).parents[1],
                env=os.environ | {"PYTHONPATH": "."},
            )
            while kill_after and self._server.num_sent() < num_before + kill_after:
                assert process.poll() is None, "it ended before it could be killed"
                time.sleep(0.002)
            if kill_after:
                process.send_signal(signal.SIGKILL)
            status = process.wait(timeout=60)
        assert status == (-signal.SIGKILL if kill_after else 0)
        *_, last = ["", *self._output.read_text().splitlines()]
        return int(last.split()[1]) if last.startswith("spent") else None

    def received(self):
        """The numbers whose replies the last run had."""
        return {int(line) for line in self._output.read_text().splitlines() if line.isdigit()}


def test_a_kill_in_mid_flight_loses_no_reply_and_pays_for_none_twice(tmp_path):
    num_questions, kills = 40, (1, 7, 11)
    with servers.served(servers.ANSWERS + fault("slow", delay_s=0.02, times=0), tmp_path) as server:
        client = Client(server, tmp_path, num_questions=num_questions)
        paid = {}  # number -> how often it was sent when its reply came
        for kill_after in (*kills, None):
            spent = client.run(kill_after=kill_after)
            sent = server.asked()
            assert {number: sent[f"number {number}"] for number in paid} == paid
            paid |= {number: sent[f"number {number}"] for number in client.received()}
        assert client.received() == set(range(num_questions))
        # Sent again: at most what was in flight at each kill.
        assert num_questions <= server.num_sent() <= num_questions + IN_FLIGHT * len(kills)
        time.sleep(0.5)  # until the server has given up on the killed clients
        assert spent >= server.billed()


def test_kills_do_not_widen_the_budget(tmp_path):
    limit, a_request = 2_000, 4 + len(servers.answer(0).split()) + 1
    with servers.served(servers.ANSWERS + fault("slow", delay_s=0.01, times=0), tmp_path) as server:
        client = Client(server, tmp_path, num_questions=300, max_total_tokens=limit)
        for kill_after in (3, 9):
            client.run(kill_after=kill_after)
        first = client.run()
        time.sleep(0.3)
        num_sent = server.num_sent()
        assert limit <= first <= limit + IN_FLIGHT * (100 + 10)
        assert server.billed() <= limit + IN_FLIGHT * a_request
        assert client.run() == first and server.num_sent() == num_sent  # it stays used up
        assert len(client.received()) > 10  # and what was paid is still answered


def test_leaving_waits_for_what_is_paid_and_sends_nothing_more(tmp_path):
    script = servers.ANSWERS + fault("delay", delay_s=0.5, times=0)

    async def run(settings):
        async with teacher.Teacher(settings, tmp_path / "cache") as client:
            asking = [asyncio.create_task(client.ask(question)) for question in QUESTIONS]
            await asyncio.sleep(0.25)
            for one in asking:
                one.cancel()
        return client

    with servers.served(script, tmp_path) as server:
        settings = server.settings(max_in_flight=3)
        client = asyncio.run(run(settings))
        assert client.counts == {"answered": 3} and server.num_sent() == 3
        replies, _ = servers.asked(settings, tmp_path / "cache", *QUESTIONS[:3])
        assert all(reply.cached for reply in replies)


def test_an_interrupt_does_not_wait_and_counts_what_had_come(tmp_path):
    script = servers.ANSWERS + fault("slow", delay_s=1.0, times=0)

    async def run(settings):
        async with teacher.Teacher(settings, tmp_path / "cache") as client:
            clients.append(client)
            await asyncio.gather(*map(client.ask, QUESTIONS))

    async def interrupted(settings):
        running = asyncio.create_task(run(settings))
        await asyncio.sleep(1.5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    clients = []
    with servers.served(script, tmp_path) as server:
        start_s = time.monotonic()
        asyncio.run(interrupted(server.settings(max_in_flight=2)))
        assert time.monotonic() - start_s < 4
        assert clients[0].counts == {"cancelled": 2} and server.num_sent() == 2
        # The prompt and the piece that had come; not the most that there could have been.
        assert 2 * 4 <= clients[0].spent.tokens < 2 * 100
