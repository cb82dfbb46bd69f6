"""The teacher's client: what a question is, what is kept, what is counted, what is never told."""

import asyncio
import datetime
import email.utils
import logging
import re
import sqlite3
import subprocess
import sys

import pytest
import teacher_servers as servers

from data_pipeline.taskgen import teacher
from data_pipeline.taskgen.teacher import backoff, faults

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


# What servers really send, byte by byte.
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"
_HEAD_OF_JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
_TEXT = "gr\u00fc\u00df \U0001f600".encode()
_VLLM = [
    b'data: {"id":"x","object":"chat.completion.chunk","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}\n\n',
    b'data: {"id":"x","choices":[{"index":0,"delta":{"reasoning":"Hm"},"finish_reason":null}]}\n\n',
    b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"' + _TEXT + b'"}}]}\n\n',
    b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"stop",'
    b'"stop_reason":null}]}\n\n',
    b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":5,"total_tokens":12,'
    b'"completion_tokens":7}}\n\n',
    b"data: [DONE]\n\n",
]
# No [DONE]; usage along with the finish reason.
_TRANSFORMERS = [
    b'data: {"id":"x","choices":[{"delta":{"content":"","role":"assistant"},"index":0}]}\n\n',
    b'data: {"id":"x","choices":[{"delta":{"reasoning_content":"Hm"},"index":0}]}\n\n',
    b'data: {"id":"x","choices":[{"delta":{"content":"' + _TEXT + b'!"},"index":0}]}\n\n',
    b'data: {"id":"x","choices":[{"delta":{},"finish_reason":"stop","index":0}],'
    b'"usage":{"completion_tokens":7,"prompt_tokens":5,"total_tokens":12}}\n\n',
]
# Comments keep the connection alive; lines end in CR LF; half of a UTF-16 pair in each piece.
_HOSTED = [
    b": PROCESSING\r\n\r\n",
    b'event: message\r\ndata: {"choices":[{"delta":{"reasoning":"Hm",\r\n'
    b'data: "content":null}}]}\r\n\r\n',
    b'data:{"choices":[{"delta":{"content":"gr\\u00fc\\u00df \\ud83d"}}]}\r\n\r\n',
    b": PROCESSING\r\n\r\n",
    b'data:{"choices":[{"delta":{"content":"\\ude00!"}}]}\r\n\r\n',
    b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":'
    b'{"prompt_tokens":5,"completion_tokens":7}}\r\n\r\ndata: [DONE]\r\n\r\n',
]
_BODY = [
    b'{"choices":[{"index":0,"message":{"role":"assistant","reasoning_content":"Hm","content":'
    b'"gr\\u00fc\\u00df \\ud83d\\ude00!"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":7}}'
]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    "head, spoken",
    [(_HEAD, _VLLM), (_HEAD, _TRANSFORMERS), (_HEAD, _HOSTED), (_HEAD_OF_JSON, _BODY)],
    ids=["vllm", "transformers", "hosted", "whole"],
)
def test_what_servers_send_is_understood_however_it_is_cut(head, spoken, size, tmp_path):
    wire = b"".join(spoken)
    writes = [head, *(wire[first : first + size] for first in range(0, len(wire), size))]
    with servers.speaking(writes) as url:
        settings = teacher.Settings(model="m", base_url=url, max_attempts=1)
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert (reply.text, reply.reasoning) == ("gr\u00fc\u00df \U0001f600!", "Hm")
    assert (reply.finish_reason, reply.input_tokens, reply.output_tokens) == ("stop", 5, 7)
    assert not reply.estimated


def test_a_stream_that_ends_in_good_order_before_the_reply_does_is_no_reply(tmp_path):
    # Without a length or chunks the connection's end is the body's.
    with servers.speaking([_HEAD, *_VLLM[:3]], [_HEAD, *_VLLM]) as url:
        settings = teacher.Settings(model="m", base_url=url, first_pause_s=0.01)
        (reply,), client = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert reply.text == "gr\u00fc\u00df \U0001f600!"
    assert client.counts == {"cut_stream": 1, "answered": 1}


def test_a_reply_whose_end_is_missing_is_kept_all_the_same(tmp_path):
    head = _HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n")
    with servers.speaking([head, *_VLLM[:4]]) as url:
        settings = teacher.Settings(model="m", base_url=url, max_attempts=1)
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert reply.text == "gr\u00fc\u00df \U0001f600!" and reply.estimated


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"message":{"content":"\\ud83d\\u0000"},"finish_reason":"\\ud83d"}]}',
        b'{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":-1}}',
        b'{"choices":[{"message":{"content":"x"}}],'
        b'"usage":{"prompt_tokens":1e9,"completion_tokens":"7"}}',
        b'{"choices":[{"message":{"content":"x"}}],'
        b'"usage":{"prompt_tokens":1,"completion_tokens":99999999999999999999}}',
        b'{"choices":[{"message":{"content":null,"tool_calls":[]},"finish_reason":"tool_calls"}]}',
    ],
)
def test_odd_replies_are_kept_as_they_are_told(body, tmp_path):
    with servers.speaking([_HEAD_OF_JSON, body]) as url:
        settings = teacher.Settings(model="m", base_url=url, max_attempts=1)
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
        (again,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert reply.text in ("\ufffd\0", "x", "") and reply.estimated
    assert again.cached and (again.text, again.dollars) == (reply.text, reply.dollars)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": {"a": 1}}',
        b'{"choices": [1]}', b'{"choices": [{"message": "text"}]}', b"<html>Bad gateway</html>",
        b'{"choices": [{"message": {"content": [1]}}]}', b"[" * 100_000, b"1" * 10_000, b"\xff\xfe",
    ],
)  # fmt: skip
def test_a_body_that_is_no_reply_is_malformed(body, tmp_path):
    with servers.speaking([_HEAD_OF_JSON, body]) as url:
        settings = teacher.Settings(model="m", base_url=url, max_attempts=1, stream=False)
        (error,), _ = servers.asked(settings, tmp_path / "cache", QUESTIONS[0])
    assert isinstance(error, teacher.TeacherError) and error.kind == "malformed"
    assert len(str(error)) < 500


# As the servers word them.
@pytest.mark.parametrize(
    "status, body, kind",
    [
        (400, '{"error":{"message":"This model\'s maximum context length is 8192 tokens. However, '
              'you requested 9000","type":"BadRequestError","code":400}}', "context_too_long"),
        (400, '{"object":"error","message":"The input (50000 tokens) is longer than the model\'s '
              'context length (40960 tokens).","code":400}', "context_too_long"),
        (400, '{"error":{"message":"Input is too long","code":"context_length_exceeded"}}',
         "context_too_long"),
        (400, '{"error":{"message":"prompt is too long: 210000 tokens > 200000 maximum"}}',
         "context_too_long"),
        (400, '{"error":{"message":"Invalid value for temperature"}}', "bad_request"),
        (404, '{"error":{"message":"The model `x` does not exist."}}', "not_found"),
        (429, '{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}',
         "quota"),
        (429, '{"error":{"message":"Rate limit reached"}}', "rate_limited"),
        (529, '{"error":{"message":"Overloaded"}}', "server_error"),
        (502, "<html>Bad gateway</html>", "server_error"),
        (422, '{"detail":[{"loc":["body"],"msg":"field required"}]}', "bad_request"),
        (307, "", "bad_request"),
    ],
)  # fmt: skip
def test_what_a_refusal_means(status, body, kind):
    assert faults.kind_of(status, faults.message_of(body)) == kind


@pytest.mark.parametrize("num_attempts, longest_s", [(1, 2), (2, 4), (3, 8), (6, 60), (5000, 60)])
def test_pauses_double_up_to_a_minute(num_attempts, longest_s):
    pauses = [
        backoff.pause_s(num_attempts, first_pause_s=2.0, retry_after_s=0.0) for _ in range(300)
    ]
    assert longest_s / 2 <= min(pauses) < 0.6 * longest_s
    assert 0.9 * longest_s < max(pauses) <= longest_s


def test_pauses_are_never_shorter_than_the_server_asks():
    pauses = [backoff.pause_s(1, first_pause_s=1.0, retry_after_s=30.0) for _ in range(100)]
    assert 30 <= min(pauses) < max(pauses) <= 37.5


def test_retry_after_is_read_in_both_forms():
    now = datetime.datetime.now(datetime.UTC)
    date = email.utils.format_datetime(now + datetime.timedelta(seconds=90), usegmt=True)
    assert backoff.retry_after_s({"retry-after": "120"}) == 120
    assert 85 <= backoff.retry_after_s({"retry-after": date}) <= 90
    assert backoff.retry_after_s({"retry-after-ms": "1500", "retry-after": "2"}) == 1.5
    past = "Fri, 31 Dec 1999 23:59:59 GMT"  # of RFC 9110
    for told in ("", past, "soon", "-5", "nan", "inf", "99999999999999999999-01-01"):
        assert backoff.retry_after_s({"retry-after": told}) == 0
