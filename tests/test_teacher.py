"""The teacher's client: what a question is, what is kept, what is counted, what is never told."""

import asyncio
import logging
import re
import sqlite3
import subprocess
import sys

import pytest
import teacher_servers as servers

from data_pipeline.taskgen import teacher

KEY = "sk-secret-0123456789"
QUESTIONS = [servers.ask_number(n) for n in range(40)]


@pytest.mark.parametrize(
    "told, message",
    [
        ({"model": ""}, "--model is not set"),
        ({"base_url": "localhost:8000"}, "--base_url='localhost:8000' must look like"),
        ({"base_url": "http://host:99999/v1"}, "must look like"),
        ({"extra": "top_p=1"}, "--extra='top_p=1' must be a JSON object"),
        ({"extra": "[1]"}, "must be a JSON object"),
        ({"extra": '{"n": 4}'}, "sets n, which the client sets itself"),
        ({"max_in_flight": 0}, "--max_in_flight=0 must be at least 1"),
        ({"timeout_s": float("nan")}, "--timeout_s=nan must be above 0"),
        ({"max_dollars": 1.0}, "--max_dollars=1.0 needs prices"),
        ({"max_dollars": -1.0}, "--max_dollars=-1.0 must be 0 or more"),
    ],
)
def test_bad_settings_are_named(told, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        teacher.Settings(**{"model": "m"} | told)


@pytest.mark.parametrize("url", [f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}"])
def test_a_key_in_the_address_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="a key belongs in the environment") as caught:
        teacher.Settings(model="m", base_url=url)
    assert KEY not in str(caught.value)


def test_what_is_asked_is_what_the_server_gets(tmp_path):
    with servers.served(servers.ANSWERS, tmp_path) as server:
        settings = server.settings(extra='{"top_p": 0.5}', temperature=0.3, max_tokens=77)
        servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        servers.asked(server.settings(temperature=-1.0), tmp_path / "cache", QUESTIONS[0])
        first, second = (event["body"] for event in server.events("came"))
    assert first == {
        "model": "scripted",
        "messages": QUESTIONS[0],
        "temperature": 0.3,
        "top_p": 0.5,
        "max_tokens": 77,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert "temperature" not in second


def test_tokens_and_dollars_are_what_the_server_counts(tmp_path):
    with servers.served(servers.ANSWERS, tmp_path) as server:
        settings = server.settings(dollars_per_million_input=3.0, dollars_per_million_output=5.0)
        replies, client = servers.asked(settings, tmp_path / "cache", *QUESTIONS)
        ended = server.events("ended")
        counts = [sum(event[f"{side}_tokens"] for event in ended) for side in ("input", "output")]
    assert [client.spent.input_tokens, client.spent.output_tokens] == counts
    dollars = (3 * counts[0] + 5 * counts[1]) / 1e6
    assert client.spent.dollars == pytest.approx(dollars)
    assert sum(reply.dollars for reply in replies) == pytest.approx(dollars)
    assert not any(reply.estimated or reply.cached for reply in replies)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_read_under_both_names(field, stream, tmp_path):
    script = f"reasoning_field = '{field}'\n{servers.ANSWERS}reasoning = 'I thought\n about it'"
    with servers.served(script.replace("'I", "'''I").replace("it'", "it'''"), tmp_path) as server:
        (reply,), _ = servers.asked(server.settings(stream=stream), tmp_path / "c", QUESTIONS[3])
    assert (reply.text, reply.reasoning) == (servers.answer(3), "I thought\n about it")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_server_that_does_not_count_is_counted_for(stream, tmp_path):
    script = f"counts_tokens = false\n{servers.ANSWERS}"
    with servers.served(script, tmp_path) as server:
        settings = server.settings(stream=stream)
        (reply,), client = servers.asked(settings, tmp_path / "c", QUESTIONS[0])
        words = server.events("ended")[0]
        assert reply.estimated
        assert words["input_tokens"] <= reply.input_tokens <= 8
        # English has more tokens than words, and fewer than twice as many.
        assert words["output_tokens"] <= reply.output_tokens <= 2 * words["output_tokens"]
        assert client.spent.tokens == reply.input_tokens + reply.output_tokens
        (again,), _ = servers.asked(settings, tmp_path / "c", QUESTIONS[0])
    assert again.estimated and again.cached


@pytest.mark.parametrize(
    "field, instead", [("stream_options", None), ("max_tokens", "max_completion_tokens")]
)
def test_a_field_that_the_server_refuses_is_left_out(field, instead, tmp_path):
    fault = f"[[rule.fault]]\nkind = 'refuse_field'\nfield = '{field}'\ntimes = 0"
    told = f"\nmessage = 'Unsupported parameter: {field}; use {instead}'"
    with servers.served(servers.ANSWERS + fault + told, tmp_path) as server:
        settings = server.settings(max_in_flight=1)
        replies, _ = servers.asked(settings, tmp_path / "cache", *QUESTIONS[:3])
        assert [reply.text for reply in replies] == [servers.answer(n) for n in range(3)]
        assert all(reply.estimated == (field == "stream_options") for reply in replies)
        came = server.events("came")
    assert len(came) == 4  # it is learnt once
    assert all(instead is None or event["body"][instead] == 400 for event in came[1:])


def test_a_rerun_costs_nothing_and_only_what_decides_a_reply_asks_anew(tmp_path):
    with servers.served(servers.ANSWERS, tmp_path) as server:
        cache = tmp_path / "cache"
        servers.asked(server.settings(), cache, *QUESTIONS[:5])
        same = server.settings(
            max_in_flight=2, timeout_s=7, stream=False, max_attempts=1,
            dollars_per_million_input=1.0,
        )  # fmt: skip
        servers.asked(same, cache, *QUESTIONS[:5])
        assert server.num_sent() == 5
        for changes in ({"temperature": 0.1}, {"max_tokens": 99}, {"extra": '{"top_k": 1}'}):
            num_before = server.num_sent()
            servers.asked(server.settings(**changes), cache, QUESTIONS[0])
            assert server.num_sent() == num_before + 1
        servers.asked(server.settings(), cache, QUESTIONS[0], salt="again")
        assert server.num_sent() == 9


def test_the_same_question_in_flight_is_sent_once(tmp_path):
    with servers.served(servers.ANSWERS, tmp_path) as server:
        questions = [QUESTIONS[n % 3] for n in range(60)]
        replies, client = servers.asked(server.settings(), tmp_path / "cache", *questions)
        assert server.num_sent() == 3
        assert [r.text for r in replies] == [servers.answer(n % 3) for n in range(60)]
        assert sum(not reply.cached for reply in replies) == 3
        assert client.spent.tokens == server.billed()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_connections_are_used_again(stream, tmp_path):
    with servers.served(servers.ANSWERS, tmp_path) as server:
        settings = server.settings(stream=stream, max_in_flight=2)
        servers.asked(settings, tmp_path / "cache", *QUESTIONS[:12])
        assert len({event["connection"] for event in server.events("came")}) <= 2


def test_who_stops_waiting_takes_the_reply_from_nobody(tmp_path):
    script = servers.ANSWERS + "[[rule.fault]]\nkind = 'delay'\ndelay_s = 0.4\ntimes = 0"

    async def run(settings):
        async with teacher.Teacher(settings, tmp_path / "cache") as client:
            first = asyncio.create_task(client.ask(QUESTIONS[0]))
            second = asyncio.create_task(client.ask(QUESTIONS[0]))
            await asyncio.sleep(0.1)
            first.cancel()
            return await second

    with servers.served(script, tmp_path) as server:
        assert asyncio.run(run(server.settings())).text == servers.answer(0)
        assert server.num_sent() == 1


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_no_more_requests_are_in_flight_than_allowed(max_in_flight, tmp_path):
    script = servers.ANSWERS + "[[rule.fault]]\nkind = 'delay'\ndelay_s = 0.02\ntimes = 0"
    with servers.served(script, tmp_path) as server:
        settings = server.settings(max_in_flight=max_in_flight)
        servers.asked(settings, tmp_path / "cache", *QUESTIONS[:15])
        now, most = 0, 0
        for line in server.log_path.read_text().splitlines():
            now += 1 if '"came"' in line else -1
            most = max(most, now)
    # The server notes the end of a reply after the client has it, and asked the next question.
    assert max_in_flight <= most <= 2 * max_in_flight


@pytest.mark.parametrize("kind", ["tokens", "dollars"])
@pytest.mark.parametrize("max_in_flight", [1, 4])
def test_the_budget_stops_cleanly_and_stays_used_up(max_in_flight, kind, tmp_path):
    a_request = 2 + len(servers.answer(0).split())
    limit = 10 * a_request - 5  # in the middle of the tenth
    limits = {"max_total_tokens": limit}
    if kind == "dollars":
        prices = {"dollars_per_million_input": 1e6, "dollars_per_million_output": 1e6}
        limits = {"max_dollars": float(limit)} | prices
    with servers.served(servers.ANSWERS, tmp_path) as server:
        settings = server.settings(max_in_flight=max_in_flight, **limits)
        outcomes, client = servers.asked(settings, tmp_path / "cache", *QUESTIONS)
        replies = [outcome for outcome in outcomes if isinstance(outcome, teacher.Reply)]
        refused = [o for o in outcomes if isinstance(o, teacher.BudgetExceeded)]
        assert len(replies) + len(refused) == len(QUESTIONS)
        assert len(replies) == server.num_sent()  # what was in flight is not thrown away
        assert limit <= server.billed() < limit + max_in_flight * a_request
        assert client.spent.tokens == server.billed()
        assert re.search(f"--max_(total_tokens|dollars)={limit};", str(refused[0]))

        num_sent = server.num_sent()
        again, _ = servers.asked(settings, tmp_path / "cache", *QUESTIONS)
        assert server.num_sent() == num_sent
        assert [type(outcome) for outcome in again] == [type(outcome) for outcome in outcomes]

        more = {name: 2 * limits[name] for name in limits if name.startswith("max")}
        settings = server.settings(max_in_flight=max_in_flight, **limits | more)
        outcomes, _ = servers.asked(settings, tmp_path / "cache", *QUESTIONS)
        assert 2 * limit <= server.billed() < 2 * limit + max_in_flight * a_request
        assert max(server.asked().values()) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_key_is_told_to_the_endpoint_alone(stream, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    told = {"api_key_env": "TEACHER_KEY", "stream": stream, "max_attempts": 2}
    seen = []
    with servers.served(f"api_key = '{KEY}'\n{servers.ANSWERS}", tmp_path) as server:
        (reply,), client = servers.asked(server.settings(**told), tmp_path / "cache", QUESTIONS[0])
        assert reply.text == servers.answer(0)
        seen += [repr(reply), repr(vars(client)), repr(vars(client._endpoint))]
    # This one says it in its reply.
    with servers.served(f"[[rule]]\nmatch = ''\ntexts = ['so {KEY} it is']", tmp_path) as server:
        (reply,), _ = servers.asked(server.settings(**told), tmp_path / "cache", QUESTIONS[2])
    assert reply.text == "so [key] it is"
    # This one wants another key, and repeats the one it got.
    with servers.served(f"api_key = 'another'\n{servers.ANSWERS}", tmp_path) as server:
        (error,), _ = servers.asked(server.settings(**told), tmp_path / "cache", QUESTIONS[1])
    assert "Incorrect API key provided: [key]" in str(error) and "$TEACHER_KEY" in str(error)
    # This one is gone: the HTTP library's own error must not come along with its request.
    (gone,), _ = servers.asked(server.settings(**told), tmp_path / "cache", QUESTIONS[1])
    for one in (error, gone):
        assert isinstance(one, teacher.TeacherError)
        assert one.__context__ is None and one.__cause__ is None
        seen += [str(one), repr(one), repr(vars(one))]
    seen.append(caplog.text)
    assert "chat/completions" in caplog.text  # the logs are on
    seen += [file.read_bytes().decode("latin-1") for file in tmp_path.iterdir()]
    assert not [text for text in seen if KEY in text]


def test_a_placeholder_for_a_key_is_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", "EMPTY")
    script = "api_key = 'EMPTY'\n[[rule]]\nmatch = ''\ntexts = ['the folder is EMPTY']"
    with servers.served(script, tmp_path) as server:
        settings = server.settings(api_key_env="TEACHER_KEY")
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert reply.text == "the folder is EMPTY"


def test_no_end_of_a_long_refusal_shows_half_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    for length in range(270, 300):
        fault = f"[[rule.fault]]\nkind = 'status'\nstatus = 401\nmessage = '{'x' * length} {KEY}'"
        with servers.served(servers.ANSWERS + fault, tmp_path) as server:
            settings = server.settings(api_key_env="TEACHER_KEY")
            (error,), _ = servers.asked(settings, tmp_path / f"cache{length}", QUESTIONS[0])
        assert error.kind == "unauthorized" and "sk-se" not in str(error)


def test_a_missing_key_is_named_where_one_is_wanted(tmp_path, monkeypatch):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with servers.served(f"api_key = '{KEY}'\n{servers.ANSWERS}", tmp_path) as server:
        settings = server.settings(api_key_env="TEACHER_KEY")
        (error,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert error.affects_all and "no key ($TEACHER_KEY is unset)" in str(error)


def test_what_cannot_be_a_key_is_refused_without_being_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", f"{KEY} \u00e9")
    settings = teacher.Settings(model="m", api_key_env="TEACHER_KEY")
    with pytest.raises(ValueError, match=r"\$TEACHER_KEY .* holds spaces") as caught:
        servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("content", ["not a database" * 100, None])
def test_a_file_that_is_no_cache_of_ours_is_left_alone(content, tmp_path):
    path = tmp_path / "cache"
    if content is None:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE other (x)")
        database.close()
    else:
        path.write_text(content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*name another file"):
        servers.asked(teacher.Settings(model="m"), path, QUESTIONS[0])
    assert content is None or path.read_bytes() == before
    assert content is not None or sqlite3.connect(path).execute("SELECT * FROM other") is not None


def test_a_second_process_is_refused_the_cache(tmp_path):
    program = """
import asyncio, pathlib, sys
from data_pipeline.taskgen import teacher
async def main():
    async with teacher.Teacher(teacher.Settings(model="m"), pathlib.Path(sys.argv[1])):
        print("open", flush=True)
        sys.stdin.read()
asyncio.run(main())
"""
    command = [sys.executable, "-c", program, str(tmp_path / "cache")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="another process uses this teacher's cache"):
            servers.asked(teacher.Settings(model="m"), tmp_path / "cache")
        first.communicate("")
    servers.asked(teacher.Settings(model="m"), tmp_path / "cache")


def test_a_full_disk_is_an_error_and_hangs_nobody(tmp_path):
    async def run(settings):
        async with teacher.Teacher(settings, tmp_path / "cache") as client:
            first = await client.ask(QUESTIONS[0])
            # SQLite's own limit on the file gives the error of a disk without room.
            limit = "PRAGMA max_page_count = 1"  # it settles on what the file has now
            store = client._store
            await asyncio.wrap_future(store._thread.submit(store._database.execute, limit))
            asking = (client.ask(servers.ask_number(n)) for n in range(1, 200))
            return first, await asyncio.gather(*asking, return_exceptions=True)

    with servers.served(servers.ANSWERS, tmp_path) as server:
        first, outcomes = asyncio.run(asyncio.wait_for(run(server.settings()), 30))
    assert first.text == servers.answer(0)
    refused = [outcome for outcome in outcomes if isinstance(outcome, OSError)]
    assert len(refused) > 100 and f"{tmp_path / 'cache'}: " in str(refused[0])
    assert "full" in str(refused[0])
