"""What a rollout asks of the server of its model."""

import contextlib
import http.server
import json
import threading
import time

import pytest

from data_pipeline import model_server

KEY = "sk-a-key-that-no-file-may-hold"


@contextlib.contextmanager
def serving(status, body):
    """A server that has one answer, such as servers of models give to GET /v1/models."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    asked = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_server_says_how_much_its_model_reads(monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    vllm = {"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 40_960}]}
    with serving(200, vllm) as (url, asked):
        assert model_server.check(url, model="m", api_key_env="SOME_KEY") == 40_960
        assert asked == [("/v1/models", f"Bearer {KEY}")]
        with pytest.raises(ValueError, match=r"--model=other is not served .* it has m"):
            model_server.check(url, model="other", api_key_env="SOME_KEY")
    with serving(401, {}) as (url, _), pytest.raises(ValueError, match="SOME_KEY") as caught:
        model_server.check(url, model="m", api_key_env="SOME_KEY")
    assert KEY not in str(caught.value)
    with serving(404, {}) as (url, _):
        assert model_server.check(url, model="m", api_key_env="SOME_KEY") == 0
    with pytest.raises(ValueError, match="does not answer"):
        model_server.check(url, model="m", api_key_env="SOME_KEY")


def test_a_server_that_is_gone_is_borne_for_a_while():
    with serving(200, {"data": []}) as (url, _):
        watch = model_server.Watch(url, api_key_env="SOME_KEY", grace_s=0.4)
        time.sleep(0.5)
        watch.look()
    time.sleep(0.2)
    watch.look()  # not yet
    time.sleep(0.5)
    with pytest.raises(ValueError, match="has not answered for"):
        watch.look()
