"""The teacher's client reads what real servers send, however it is cut, and waits as they ask."""

import datetime
import email.utils

import pytest
import teacher_servers as servers

from data_pipeline.taskgen import teacher
from data_pipeline.taskgen.teacher import backoff, faults

QUESTION = servers.ask_number(0)

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
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTION)
    assert (reply.text, reply.reasoning) == ("gr\u00fc\u00df \U0001f600!", "Hm")
    assert (reply.finish_reason, reply.input_tokens, reply.output_tokens) == ("stop", 5, 7)
    assert not reply.estimated


def test_a_stream_that_ends_in_good_order_before_the_reply_does_is_no_reply(tmp_path):
    # Without a length or chunks the connection's end is the body's.
    with servers.speaking([_HEAD, *_VLLM[:3]], [_HEAD, *_VLLM]) as url:
        settings = teacher.Settings(model="m", base_url=url, first_pause_s=0.01)
        (reply,), client = servers.asked(settings, tmp_path / "cache", QUESTION)
    assert reply.text == "gr\u00fc\u00df \U0001f600!"
    assert client.counts == {"cut_stream": 1, "answered": 1}


def test_a_reply_whose_end_is_missing_is_kept_all_the_same(tmp_path):
    head = _HEAD.replace(b"\r\n\r\n", b"\r\nContent-Length: 9999\r\n\r\n")
    with servers.speaking([head, *_VLLM[:4]]) as url:
        settings = teacher.Settings(model="m", base_url=url, max_attempts=1)
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTION)
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
        (reply,), _ = servers.asked(settings, tmp_path / "cache", QUESTION)
        (again,), _ = servers.asked(settings, tmp_path / "cache", QUESTION)
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
        (error,), _ = servers.asked(settings, tmp_path / "cache", QUESTION)
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
