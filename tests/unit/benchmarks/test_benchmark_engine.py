"""The C programs: the mock engine speaks both APIs, and the load generator sees what goes wrong."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import threading
import urllib.request

import pytest
from benchmarks.edge import EngineWatch, parse_counters, request_bytes, time_to_notice
from benchmarks.loads import Load
from benchmarks.processes import fetch, wait_until
from benchmarks.results import parse_loadgen

STAMP = re.compile(r"#[0-9a-f]{16}\.([0-9a-f]{6}) ")


def post(port: int, path: str, body: object) -> str:
    data = json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read().decode()


def frames(stream: str) -> list[dict]:
    return [json.loads(part.removeprefix("data: ")) for part in stream.split("\n\n") if part and "[DONE]" not in part]


def places(text: str) -> list[int]:
    return [int(place, 16) for place in STAMP.findall(text)]


def counters(port: int) -> dict[str, int]:
    return parse_counters(fetch(port, "/metrics")[1])


def loadgen(native, port: int, load: Load, api: str = "chat", limit_s: float = 30) -> dict:
    words = [str(native.loadgen), "--port", str(port), "--api", api, "--timeout", str(limit_s), *load.arguments()]
    return parse_loadgen(subprocess.run(words, capture_output=True, text=True).stdout)


def test_a_native_stream_has_one_frame_per_token_and_ends_with_the_totals(engine_port):
    sent = frames(post(engine_port, "/completion", {"prompt": "hi [bench n=5 rate=0]", "stream": True}))
    assert [frame["stop"] for frame in sent] == [False] * 5 + [True]
    assert [place for frame in sent for place in places(frame["content"])] == [0, 1, 2, 3, 4]
    assert [len(frame["tokens"]) for frame in sent] == [1] * 5 + [0]
    assert [frame["tokens_predicted"] for frame in sent] == [1, 2, 3, 4, 5, 5]
    assert [frame["id_slot"] for frame in sent] == [-1] * 5 + [0]
    assert sent[-1]["stop_type"] == "limit"
    assert sent[-1]["timings"]["predicted_n"] == 5
    assert sent[-1]["generation_settings"]["n_predict"] == 5


def test_a_native_stream_tells_the_prompt_and_the_short_end_when_it_is_asked_to(engine_port):
    body = {
        "prompt": "hi [bench n=2 rate=0]",
        "stream": True,
        "id_slot": 1,
        "return_progress": True,
        "response_fields": ["content", "stop"],
    }
    sent = frames(post(engine_port, "/completion", body))
    assert sent[0]["prompt_progress"]["processed"] == sent[0]["prompt_progress"]["total"] > 0
    assert [frame["id_slot"] for frame in sent] == [1, -1, -1, 1]
    assert [frame["stop"] for frame in sent] == [False, False, False, True]
    assert "generation_settings" not in sent[-1]
    assert sent[-1]["timings"]["predicted_n"] == 2


def test_without_knobs_the_token_limit_counts(engine_port):
    assert len(frames(post(engine_port, "/completion", {"prompt": "hi", "n_predict": 3, "stream": True}))) == 4
    answer = json.loads(post(engine_port, "/v1/completions", {"prompt": "hi", "max_tokens": 4}))
    assert places(answer["choices"][0]["text"]) == [0, 1, 2, 3]


def test_a_chat_stream_ends_with_a_reason_and_done(engine_port):
    stream = post(engine_port, "/v1/chat/completions", {"stream": True, "max_tokens": 3, "messages": []})
    choices = [frame["choices"][0] for frame in frames(stream)]
    assert stream.endswith("data: [DONE]\n\n")
    assert choices[0]["delta"]["role"] == "assistant"
    assert places("".join(choice["delta"].get("content", "") for choice in choices)) == [0, 1, 2]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "length"]


def test_a_whole_chat_answer_tells_its_usage(engine_port):
    answer = json.loads(post(engine_port, "/v1/chat/completions", {"max_tokens": 3, "messages": []}))
    assert places(answer["choices"][0]["message"]["content"]) == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 3


def test_knobs_survive_a_prompt_of_token_ids(engine_port):
    text = 'say "é" [bench n=7 rate=0]\n'
    tokens = json.loads(post(engine_port, "/tokenize", {"content": text}))["tokens"]
    assert json.loads(post(engine_port, "/detokenize", {"tokens": tokens}))["content"] == text
    assert len(frames(post(engine_port, "/completion", {"prompt": tokens, "stream": True}))) == 8


def test_the_template_is_chatml(engine_port):
    messages = [{"role": "system", "content": 'a "b"\n'}, {"content": "c", "role": "user"}]
    prompt = json.loads(post(engine_port, "/apply-template", {"messages": messages}))["prompt"]
    assert prompt == ('<|im_start|>system\na "b"\n<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n')
    assert "im_start" in json.loads(fetch(engine_port, "/props")[1])["chat_template"]


def test_a_slot_is_busy_while_it_streams_and_a_full_engine_refuses(engine_port):
    def busy() -> int:
        return sum(slot["is_processing"] for slot in json.loads(fetch(engine_port, "/slots")[1]))

    readers = [socket.create_connection(("127.0.0.1", engine_port)) for _ in range(2)]
    for reader in readers:
        reader.sendall(request_bytes(1000, 0.001))
    assert wait_until(lambda: busy() == 2, 10)
    third = http.client.HTTPConnection("127.0.0.1", engine_port, timeout=10)
    third.request("POST", "/completion", b'{"prompt":"hi","stream":true}')
    assert third.getresponse().status == 503
    third.close()
    for reader in readers:
        reader.close()
    assert wait_until(lambda: busy() == 0, 10)
    assert counters(engine_port)["aborts"] == 2


def test_a_reader_that_leaves_is_noticed_and_one_that_finishes_is_no_abort(engine_port):
    watch = EngineWatch(engine_port)
    assert time_to_notice(engine_port, watch, rate=20) is not None
    assert time_to_notice(engine_port, watch, rate=0.001) is not None
    post(engine_port, "/completion", {"prompt": "[bench n=3 rate=0]", "stream": True})
    assert watch.counters()["aborts"] == 2
    assert watch.counters()["requests"] == 3
    watch.close()


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense"])
def test_what_is_no_object_is_refused(engine_port, body):
    connection = http.client.HTTPConnection("127.0.0.1", engine_port, timeout=10)
    connection.request("POST", "/completion", body)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["type"]) == (400, "invalid_request_error")
    connection.request("GET", "/nowhere")  # and the connection goes on
    assert connection.getresponse().status == 404
    connection.close()


@pytest.mark.parametrize(
    "load",
    [
        Load("", "", clients=1, requests=3, tokens=500),
        Load("", "", clients=2, requests=4, tokens=10, rate=200),
        Load("", "", clients=2, requests=4, tokens=10, rate=200, in_phase=True),
        Load("", "", clients=2, requests=50, tokens=8, whole=True),
    ],
    ids=["unpaced", "paced", "in phase", "whole"],
)
def test_every_token_of_every_load_arrives_in_order(native, engine_port, load):
    measured = loadgen(native, engine_port, load)
    assert measured["error"] == ""
    assert (measured["ok"], measured["failed"], measured["unfinished"]) == (load.requests, 0, 0)
    assert measured["tokens"] == load.requests * load.tokens
    assert measured["misplaced"] == 0
    assert counters(engine_port)["frames"] == load.requests * load.tokens


class CannedServer:
    """Answers every request on one connection after the other with the same bytes."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.requests: list[bytes] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        with connection:
            for answer in self._answers:
                self.requests.append(connection.recv(65536))
                for byte in range(len(answer)):  # cut everywhere
                    connection.sendall(answer[byte : byte + 1])

    def close(self) -> None:
        self._socket.close()
        self._thread.join(10)


def stream_answer(*placed: int) -> bytes:
    body = "".join(f'data: {{"t":"#{1:016x}.{place:06x} "}}\n\n' for place in placed).encode()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x;note=1\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize(
    "placed, misplaced, ok",
    [((0, 1, 2), 0, 1), ((0, 2), 1, 1), ((0, 1), 0, 0), ((1, 0, 2), 3, 1), ((0, 1, 1, 2), 1, 1)],
    ids=["whole", "one lost", "end lost", "reordered", "doubled"],
)
def test_tokens_that_are_lost_doubled_or_out_of_order_are_seen(native, placed, misplaced, ok):
    server = CannedServer(stream_answer(*placed))
    measured = loadgen(native, server.port, Load("", "", clients=1, requests=1, tokens=3))
    server.close()
    assert (measured["misplaced"], measured["ok"]) == (misplaced, ok)


def test_a_refusal_is_a_failure_with_its_body(native):
    server = CannedServer(b'HTTP/1.1 429 Too Many\r\nContent-Length: 11\r\n\r\n{"code":"x"}'[:-1])
    measured = loadgen(native, server.port, Load("", "", clients=1, requests=1, tokens=3))
    server.close()
    assert measured["failed"] == 1
    assert "status 429" in measured["error"] and "code" in measured["error"]


def test_a_stream_that_breaks_off_is_a_failure(native):
    server = CannedServer(stream_answer(0, 1, 2)[:-7])
    measured = loadgen(native, server.port, Load("", "", clients=1, requests=1, tokens=3))
    server.close()
    assert measured["failed"] == 1
    assert "connection closed" in measured["error"]


def test_a_task_is_submitted_and_its_stream_read(native):
    accepted = b'{"queue_position":0,"task_id": "7b1e"}'
    head = b"HTTP/1.1 202 Accepted\r\nContent-Length: %d\r\n\r\n" % len(accepted)
    server = CannedServer(head + accepted, stream_answer(0, 1, 2))
    measured = loadgen(native, server.port, Load("", "", clients=1, requests=1, tokens=3), api="tasks")
    server.close()
    assert (measured["error"], measured["ok"], measured["tokens"]) == ("", 1, 3)
    assert server.requests[0].startswith(b"POST /v1/tasks HTTP/1.1\r\n")
    assert server.requests[1].startswith(b"GET /v1/tasks/7b1e/stream HTTP/1.1\r\n")


def test_a_silent_server_leaves_requests_unfinished(native):
    server = CannedServer(b"")
    measured = loadgen(native, server.port, Load("", "", clients=1, requests=1, tokens=3), limit_s=0.3)
    server.close()
    assert measured["ok"] == 0
    assert measured["failed"] + measured["unfinished"] == 1


def test_the_shim_delays_fsync_and_passes_errors_on(native):
    program = (
        "import os, tempfile, time\n"
        "f = tempfile.TemporaryFile(); f.write(b'x'); began = time.monotonic()\n"
        "os.fsync(f.fileno()); os.fdatasync(f.fileno())\n"
        "print(time.monotonic() - began >= 0.1)\n"
        "try: os.fsync(999)\n"
        "except OSError as e: print(e.errno)\n"
    )
    done = subprocess.run(
        ["python3", "-c", program],
        env={"PATH": "/usr/bin:/bin:/usr/local/bin", "LD_PRELOAD": str(native.fsync_delay), "FSYNC_DELAY_MS": "50"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["True", "9"], done.stderr
