"""The scripted teacher, asked by clients that are not ours."""

import http.client
import json
import re
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request

import pytest
import teacher_servers as servers

from data_pipeline.taskgen import teacher_script

TURNS = """
[[rule]]
match = 'Task (?P<name>\\w+)'
where = "first"
texts = ["look", "work", "done"]

[[rule]]
match = 'count'
where = "any"
by = "call"
template = true
texts = ["call {{call}}", "again {{call}} {{digest}}"]
"""


def post(url, body, **headers):
    """Status, headers and body of a request made by the standard library."""
    request = urllib.request.Request(
        f"{url}/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def conversation(first, num_turns):
    """A question after so many answers."""
    messages = [{"role": "user", "content": first}]
    for turn in range(num_turns):
        messages += [
            {"role": "assistant", "content": f"answer {turn}"},
            {"role": "user", "content": f"output {turn}"},
        ]
    return {"model": "scripted", "messages": messages}


def text_of(url, body):
    status, _, data = post(url, body)
    assert status == 200
    return json.loads(data)["choices"][0]["message"]["content"]


def test_the_turn_of_each_conversation_decides_the_text(tmp_path):
    with servers.served(TURNS, tmp_path) as server:
        order = [(name, turn) for turn in (0, 2, 1, 5, 1) for name in ("a", "b")]
        texts = [text_of(server.url, conversation(f"Task {name}", turn)) for name, turn in order]
    words = {0: "look", 1: "work", 2: "done", 5: "done"}
    assert texts == [words[turn] for _, turn in order]


def test_calls_are_counted_and_places_filled_in(tmp_path):
    with servers.served(TURNS, tmp_path) as server:
        texts = [text_of(server.url, conversation("count", turn)) for turn in (0, 0, 1)]
    assert texts[0] == "call 0" and re.fullmatch(r"again 1 [0-9a-f]{12}", texts[1])
    assert texts[1].split()[2] != texts[2].split()[2]  # another question has another digest


def test_parts_of_a_message_are_its_text(tmp_path):
    body = conversation("", 0)
    body["messages"][0]["content"] = [{"type": "text", "text": "Task "}, {"text": "x"}]
    with servers.served(TURNS, tmp_path) as server:
        assert text_of(server.url, body) == "look"


def test_a_stream_has_the_same_words_and_usage_when_it_is_asked_for(tmp_path):
    script = f"{servers.ANSWERS}reasoning = 'first think, then say what there is to say now'"
    body = conversation("number 7", 0)
    with servers.served(script, tmp_path) as server:
        whole = json.loads(post(server.url, body)[2])
        streamed = {}
        for options in ({}, {"stream_options": {"include_usage": True}}):
            _, headers, data = post(server.url, body | {"stream": True} | options)
            assert headers["Content-Type"] == "text/event-stream"
            *events, done, end = data.decode().split("\n\n")
            assert (done, end) == ("data: [DONE]", "")
            streamed[bool(options)] = [json.loads(event.removeprefix("data: ")) for event in events]
    message = whole["choices"][0]["message"]
    for pieces in streamed.values():
        deltas = [choice["delta"] for piece in pieces for choice in piece["choices"]]
        assert len(deltas) > 5
        for field in ("content", "reasoning_content"):
            assert "".join(delta.get(field, "") for delta in deltas) == message[field]
        reasons = [choice["finish_reason"] for piece in pieces for choice in piece["choices"]]
        assert [reason for reason in reasons if reason] == ["stop"]
    assert message["content"] == servers.answer(7)
    # Two words were asked; the words of both texts were said.
    said = len(message["content"].split()) + len(message["reasoning_content"].split())
    counts = {"prompt_tokens": 2, "completion_tokens": said, "total_tokens": said + 2}
    assert whole["usage"] == streamed[True][-1]["usage"] == counts
    assert not any("usage" in piece for piece in streamed[False])


def test_max_tokens_is_obeyed(tmp_path):
    body = conversation("number 7", 0) | {"max_tokens": 3}
    with servers.served(servers.ANSWERS, tmp_path) as server:
        reply = json.loads(post(server.url, body)[2])
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["choices"][0]["message"]["content"].split() == servers.answer(7).split()[:3]
    assert reply["usage"]["completion_tokens"] == 3


def test_the_model_is_listed(tmp_path):
    with (
        servers.served(f"model = 'one'\n{TURNS}", tmp_path) as server,
        urllib.request.urlopen(f"{server.url}/models", timeout=10) as response,
    ):
        assert [model["id"] for model in json.load(response)["data"]] == ["one"]


def test_faults_come_in_order_each_so_often(tmp_path):
    script = (
        servers.ANSWERS
        + """
[[rule.fault]]
kind = "status"
status = 429
retry_after_s = 3
each = "question"
[[rule.fault]]
kind = "status"
status = 503
times = 1
"""
    )
    with servers.served(script, tmp_path) as server:
        asked = [post(server.url, conversation(f"number {n}", 0)) for n in (1, 2, 1, 2, 1, 2)]
    assert [status for status, *_ in asked] == [429, 429, 503, 200, 200, 200]
    assert asked[0][1]["Retry-After"] == "3" and asked[2][1]["Retry-After"] is None


def test_a_cut_reply_is_cut_for_any_client(tmp_path):
    script = f"{servers.ANSWERS}[[rule.fault]]\nkind = 'cut'\ntimes = 0"
    with servers.served(script, tmp_path) as server:
        for body in (conversation("number 1", 0), conversation("number 1", 0) | {"stream": True}):
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                post(server.url, body)
        assert [event["outcome"] for event in server.events("ended")] == ["cut", "cut"]


@pytest.mark.parametrize(
    "body, message",
    [({"messages": []}, "messages"), ([], "messages"), (conversation("?", 0), "no rule")],
)
def test_what_it_cannot_answer_it_refuses(body, message, tmp_path):
    with servers.served(TURNS, tmp_path) as server:
        status, _, data = post(server.url, body)
    assert status == 400 and message in json.loads(data)["error"]["message"]


def test_a_wrong_key_is_refused_and_no_key_is_logged(tmp_path):
    body = conversation("number 1", 0)
    with servers.served(f"api_key = 'right'\n{servers.ANSWERS}", tmp_path) as server:
        statuses = [
            post(server.url, body, **headers)[0]
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "Bearer right"},
            )
        ]
        log = server.log_path.read_text()
    assert statuses == [401, 401, 200]
    assert "right" not in log and "wrong" not in log


@pytest.mark.parametrize(
    "script, message",
    [
        ("", "no [[rule]]"),
        ("[[rule]]\nmatch = ''", "rule 1: `texts` or `text_files` must list"),
        ("[[rule]]\nmatch = '('\ntexts = ['a']", "rule 1: match='(' is no regular expression"),
        ("[[rule]]\nmatch = ''\ntexts = ['a']\nwhen = 1", "rule 1: unknown key 'when'"),
        ("[[rule]]\nmatch = ''\ntexts = ['a']\nwhere = 'middle'", "where='middle' is not one of"),
        ("[[rule]]\ntexts = ['a']", "missing 1 required keyword-only argument: 'match'"),
        ("[[rule]]\nmatch = ''\ntemplate = true\ntexts = ['{{x}}']", "{{x}} is neither a named"),
        ("[[rule]]\nmatch = ''\ntexts = ['a']\n[[rule.fault]]\nkind = 'x'", "kind='x' is not one"),
        ("models = 'm'\n[[rule]]\nmatch = ''\ntexts = ['a']", "the script: unknown key 'models'"),
        ("model =", "Invalid value"),
    ],
)
def test_a_bad_script_is_named(script, message, tmp_path):
    path = tmp_path / "script.toml"
    path.write_text(script)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{re.escape(message)}"):
        teacher_script.read(path)


def test_texts_may_stand_in_files_beside_the_script(tmp_path):
    (tmp_path / "long.md").write_text("from a file")
    told = tomllib.loads("[[rule]]\nmatch = ''\ntext_files = ['long.md']\ntexts = ['first']")
    script = teacher_script.script_from(told, folder=tmp_path)
    assert script.rules[0].texts == ("first", "from a file")


def test_the_command_serves_until_it_is_stopped(tmp_path):
    (tmp_path / "script.toml").write_text(servers.ANSWERS)
    command = [sys.executable, "-m", "data_pipeline.taskgen.scripted_teacher"]
    command += [str(tmp_path / "script.toml"), f"--log={tmp_path / 'log'}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert text_of(url, conversation("number 5", 0)) == servers.answer(5)
        process.terminate()
    assert len((tmp_path / "log").read_text().splitlines()) == 2
