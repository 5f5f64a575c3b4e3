"""How a stream is shown."""

from __future__ import annotations

import io
import json

import pytest

from llama_orch.cli import exits
from llama_orch.cli.exits import CliError
from llama_orch.cli.following import Follower
from llama_orch.cli.shell import Shell
from llama_orch.client import Frame


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shell(out: io.StringIO, err: io.StringIO) -> Shell:
    return Shell(stdin=io.StringIO(), stdout=out, stderr=err, environ={})


def frame(event: str, id: str = "", **data: object) -> Frame:
    return Frame(event, json.dumps(data), id)


START = frame("started", "1.0", pool_id="cpu", engine="mock", seed=1)
END = frame("end", "1.3", tokens_out=2, decode_ms=1000, finish_reason="stop")


def test_progress_shows_beside_a_pipe_while_tokens_come():
    now = iter([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    out, err = io.StringIO(), Terminal()
    follower = Follower(shell(out, err), clock=lambda: next(now))
    follower.follow([START, frame("token", "1.1", t="a", i=0), frame("token", "1.2", t="b", i=1), END])
    assert out.getvalue() == "ab\n"
    assert "2 tokens · " in err.getvalue()
    assert err.getvalue().endswith("\r\x1b[2K"), "the line is taken away in the end"


def test_metrics_stand_in_the_progress_line():
    now = iter([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    out, err = io.StringIO(), Terminal()
    follower = Follower(shell(out, err), clock=lambda: next(now))
    waiting = frame("metrics", queue_depth=3, queue_position=2, predicted_start_ms=1500)
    running = frame("metrics", queue_depth=3, gpus=[{"device": "GPU-1", "utilization_percent": 71}])
    tokens = [frame("token", "1.1", t="a", i=0), frame("token", "1.2", t="b", i=1)]
    follower.follow([waiting, START, running, *tokens, END])
    assert "queue position 2 · starts in about 1.5 s" in err.getvalue()
    assert " · GPU 71 % · 3 waiting" in err.getvalue()
    assert out.getvalue() == "ab\n"


def test_reasoning_and_other_choices_are_not_mixed_into_the_text():
    out = io.StringIO()
    frames = [
        START,
        frame("token", "1.1", t="thinking", i=0, channel="reasoning"),
        frame("token", "1.2", t="other", i=1, choice=1),
        frame("token", "1.3", t="ab", i=2, n=2),
        END,
    ]
    follower = Follower(shell(out, io.StringIO()))
    follower.follow(frames)
    assert out.getvalue() == "ab\n"
    assert follower.tokens == 4


def test_a_lost_tail_is_told_once_in_words():
    out, err = io.StringIO(), io.StringIO()
    follower = Follower(shell(out, err))
    follower.follow(
        [START, frame("token", "1.1", t="a", i=0), frame("resume_lost", last_id_held="1.0", seen="1.1"), END]
    )
    assert out.getvalue() == "a\n"
    assert "text may repeat or differ from here, after frame 1.0" in err.getvalue()


def test_a_task_that_fails_says_whether_to_try_again():
    follower = Follower(shell(io.StringIO(), io.StringIO()))
    with pytest.raises(CliError) as caught:
        follower.follow([START, frame("error", "1.1", code="WORKER_RESET", message="died", retriable=True)])
    assert (caught.value.status, caught.value.code) == (exits.TASK_FAILED, "WORKER_RESET")
    assert "tried again" in caught.value.remedy


def test_frames_of_a_newer_server_are_no_error():
    follower = Follower(shell(io.StringIO(), io.StringIO()))
    follower.follow([frame("something_new", x=1), END])
    assert follower.end["tokens_out"] == 2


def test_a_server_that_is_none_of_ours_is_told():
    follower = Follower(shell(io.StringIO(), io.StringIO()))
    with pytest.raises(CliError, match="a frame that is no JSON"):
        follower.follow([Frame("message", "[DONE]")])
