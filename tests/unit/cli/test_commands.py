"""Commands against a server that answers as the test says: output for people, pipes and programs, and exit statuses."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from llama_orch.cli import exits
from llama_orch.cli.command import commands

TASK = "0b8a6b1e-2f6e-4a43-9d3f-7d3f3c1f6a10"
STREAM = f"/v1/tasks/{TASK}/stream"


def answer(status=200, body=None, chunks=None):
    return SimpleNamespace(status=status, body=body, chunks=chunks)


@pytest.fixture
def run(call, server):
    """The command line, pointed at the fake server."""

    def run(*arguments, **named):
        return call(*arguments, "--url", server.url, **named)

    return run


@pytest.fixture
def haiku(server, frame):
    """A server that accepts any task and says two lines."""
    said = {}

    def submitted(task_id: str) -> None:
        server.on(
            "GET",
            f"/v1/tasks/{task_id}/stream",
            answer(
                chunks=[
                    frame("queued", {"queue_position": 2, "predicted_start_ms": 2500}),
                    frame("started", {"pool_id": "cpu", "engine": "mock", "seed": 7, "queue_time_ms": 5}, "1.0"),
                    frame("token", {"t": "rain", "i": 0}, "1.1"),
                    frame("token", {"t": "\x1b[2Jfalls\n", "i": 1}, "1.2"),
                    frame("end", {"tokens_out": 2, "decode_ms": 100, "finish_reason": "stop", "usage": {}}, "1.3"),
                ]
            ),
        )

    server.on("GET", "/v1/models", answer(body={"data": [{"id": "haiku"}]}))
    server.on("POST", "/v1/tasks", answer(202, {"task_id": TASK, "queue_position": 2, "predicted_start_ms": 9}))
    submitted(TASK)
    said["ids"] = submitted
    return server


@pytest.fixture
def fixed_id(monkeypatch):
    """Tasks get a known id."""
    monkeypatch.setattr("uuid.uuid4", lambda: TASK)


# --- run ------------------------------------------------------------------------------------------------------------


def test_run_streams_plain_text_into_a_pipe(run, haiku, fixed_id):
    done = run("run", "Write", "a haiku", "--seed", "7", "--stop", "END")
    assert (done.status, done.out, done.err) == (exits.OK, "rain\x1b[2Jfalls\n", "")
    (said,) = haiku.asked("POST", "/v1/tasks")
    assert said.body == {
        "task_id": TASK,
        "model_ref": "haiku",
        "workload": "chat",
        "messages": [{"role": "user", "content": "Write a haiku"}],
        "seed": 7,
        "stop": ["END"],
    }


def test_run_at_a_terminal_shows_progress_and_keeps_control_characters_away(run, haiku, fixed_id):
    done = run("run", "hi", terminal=True)
    assert done.status == exits.OK
    assert "\x1b[2J" not in done.out.replace("\x1b[2K", "")
    assert "rain�[2Jfalls" in done.out
    assert "queue position 2 · starts in about 2.5 s" in done.err
    assert "2 tokens · 20.0 tok/s · queued 5 ms · on cpu · seed 7" in done.err


def test_run_as_json_is_one_object(run, haiku, fixed_id):
    done = run("run", "hi", "--json")
    told = json.loads(done.out)
    assert (told["task_id"], told["text"], told["end"]["finish_reason"]) == (TASK, "rain\x1b[2Jfalls\n", "stop")


def test_run_reads_its_prompt_from_a_pipe(run, haiku, fixed_id):
    assert run("run", stdin="from a pipe\n").status == exits.OK
    assert run("run", "-", "--raw", stdin="raw").status == exits.OK
    chat, raw = haiku.asked("POST", "/v1/tasks")
    assert chat.body["messages"] == [{"role": "user", "content": "from a pipe\n"}]
    assert (raw.body["workload"], raw.body["prompt"]) == ("completion", "raw")


def test_run_with_a_system_message_and_all_parameters(run, haiku, fixed_id):
    run(
        "run", "hi", "--system", "Be brief.", "-m", "other", "--temperature", "0", "--top-p", "0.5", "--top-k", "3",
        "--max-tokens", "9", "--priority", "batch", "--deadline-ms", "1000", "--determinism", "strict", "--pin", "cpu",
        "--session", TASK,
    )  # fmt: skip
    body = haiku.asked("POST", "/v1/tasks")[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["placement"] == {"mode": "pin", "pin_pool_id": "cpu"}
    assert (body["model_ref"], body["temperature"], body["top_k"], body["priority"]) == ("other", 0, 3, "batch")
    assert haiku.asked("GET", "/v1/models") == []


def test_run_of_a_task_that_fails_says_why(run, haiku, fixed_id, frame):
    error = {"code": "WORKER_RESET", "message": "the engine died", "retriable": True}
    chunks = [frame("started", {}, "1.0"), frame("token", {"t": "ra", "i": 0}, "1.1"), frame("error", error, "1.2")]
    haiku.on("GET", STREAM, answer(chunks=chunks))
    done = run("run", "hi")
    assert (done.status, done.out) == (exits.TASK_FAILED, "ra\n")
    assert done.err == "llama-orch: the task failed: the engine died\n  It may work when tried again.\n"


def test_run_that_the_server_refuses_says_for_how_long(run, haiku):
    body = {"code": "ADMISSION_REJECT", "message": "the queue is full", "remedy": "Wait.", "retry_after_ms": 2000}
    haiku.on("POST", "/v1/tasks", answer(429, body))
    done = run("run", "hi", "--json")
    assert done.status == exits.REFUSED
    told = json.loads(done.err)["error"]
    assert (told["code"], told["exit_status"], told["retry_after_ms"]) == ("ADMISSION_REJECT", 4, 2000)


def test_run_interrupted_cancels_its_task(call, haiku, fixed_id, monkeypatch):
    haiku.on("POST", f"/v1/tasks/{TASK}/cancel", answer(204))

    def interrupt(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("llama_orch.cli.client.Client.stream", interrupt)
    done = call("run", "hi", "--url", haiku.url)
    assert done.status == exits.INTERRUPTED
    assert "Cancelled after 0 tokens." in done.err
    assert len(haiku.asked("POST", f"/v1/tasks/{TASK}/cancel")) == 1


# --- chat -----------------------------------------------------------------------------------------------------------


def test_chat_keeps_the_conversation(run, haiku, fixed_id):
    done = run("chat", stdin="one\n\n/system Be kind.\ntwo\n/reset\nthree\n/nonsense\n/exit\nnever\n", terminal=False)
    assert done.status == exits.OK
    bodies = [said.body["messages"] for said in haiku.asked("POST", "/v1/tasks")]
    assert bodies[0] == [{"role": "user", "content": "one"}]
    assert [message["role"] for message in bodies[1]] == ["system", "user", "assistant", "user"]
    assert bodies[1][2]["content"] == "rain\x1b[2Jfalls\n"
    assert bodies[2] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "three"}]
    assert "/nonsense is no instruction" in done.err


def test_chat_goes_on_after_a_refusal_and_forgets_what_was_not_answered(run, haiku, fixed_id):
    haiku.on(
        "POST", "/v1/tasks", answer(503, {"code": "POOL_UNREADY", "message": "loading"}), answer(202, {"task_id": TASK})
    )
    done = run("chat", "--json", stdin="one\ntwo\n")
    assert done.status == exits.OK
    assert json.loads(done.err)["error"]["code"] == "POOL_UNREADY"
    assert haiku.asked("POST", "/v1/tasks")[1].body["messages"] == [{"role": "user", "content": "two"}]
    assert json.loads(done.out)["text"].startswith("rain")


# --- tasks ----------------------------------------------------------------------------------------------------------


def test_submit_prints_the_id(run, haiku):
    done = run("submit", "hi", "--key", "k")
    assert (done.status, done.out) == (exits.OK, f"{TASK}\n")
    assert "queue position 2" in done.err
    assert haiku.asked("POST", "/v1/tasks")[0].headers["Idempotency-Key"] == "k"
    assert json.loads(run("submit", "hi", "--json").out)["task_id"] == TASK


def test_submit_takes_a_whole_request_from_a_file(run, haiku, tmp_path):
    path = tmp_path / "task.json"
    path.write_text('{"prompt": "p", "model_ref": "m", "seed": 1}')
    run("submit", "--file", str(path), "--seed", "2")
    run("submit", "--file", "-", stdin='{"prompt": "q"}')
    first, second = haiku.asked("POST", "/v1/tasks")
    assert first.body == {"prompt": "p", "model_ref": "m", "seed": 2}
    assert second.body == {"prompt": "q", "model_ref": "haiku"}


@pytest.mark.parametrize(
    "content, told", [("{", "not JSON"), ("[]", "holds list, takes an object"), (None, "No such file")]
)
def test_submit_of_a_file_that_is_none_is_a_usage_error(run, haiku, tmp_path, content, told):
    path = tmp_path / "task.json"
    if content is not None:
        path.write_text(content)
    done = run("submit", "--file", str(path))
    assert (done.status, told in done.err) == (exits.USAGE, True)


def test_submit_can_wait_for_the_answer(run, haiku):
    assert run("submit", "hi", "--wait").out.startswith("rain")
    assert json.loads(run("submit", "hi", "--wait", "--json").out)["end"]["tokens_out"] == 2


def test_stream_prints_text_or_frames(run, haiku):
    assert run("stream", TASK).out == "rain\x1b[2Jfalls\n"
    frames = [json.loads(line) for line in run("stream", TASK, "--json").out.splitlines()]
    assert [frame["event"] for frame in frames] == ["queued", "started", "token", "token", "end"]
    assert frames[2] == {"event": "token", "id": "1.1", "data": {"t": "rain", "i": 0}}
    run("stream", TASK, "--from", "1.1")
    assert haiku.asked("GET", STREAM)[-1].headers["Last-Event-ID"] == "1.1"


def test_stream_of_an_unknown_task_says_what_to_do(run, server):
    done = run("stream", "nope")
    assert (done.status, done.err) == (
        exits.FAILED,
        "llama-orch: no /v1/tasks/nope/stream?progress=1\n  Check the id.\n",
    )


def test_cancel_is_quiet_in_a_pipe_and_told_as_json(run, server):
    server.on("POST", f"/v1/tasks/{TASK}/cancel", answer(204))
    assert run("cancel", TASK, "-q").out == ""
    assert json.loads(run("cancel", TASK, "--json").out) == {"task_id": TASK, "cancelled": True}


PAGE = {
    "tasks": [
        {
            "task_id": TASK, "state": "completed", "model_ref": "haiku", "priority": "batch", "created_ms": 1_700_000_000_000,
            "usage": {"completion_tokens": 9}, "finish_reason": "stop", "error": None, "text": None,
        },
        {
            "task_id": "b", "state": "failed", "model_ref": "a\tb\x1b]0;x\x07", "priority": "interactive", "created_ms": 0,
            "usage": {}, "finish_reason": "error", "error": {"code": "WORKER_RESET"}, "text": None,
        },
    ],
    "next": "",
}  # fmt: skip


def test_tasks_are_tab_separated_in_a_pipe_and_a_table_at_a_terminal(run, server):
    server.on("GET", "/v1/tasks", answer(body=PAGE))
    piped = run("tasks", "--state", "failed", "--limit", "5").out.splitlines()
    assert piped[0].split("\t")[:3] == ["TASK", "STATE", "MODEL"]
    assert piped[1].split("\t")[0] == TASK
    assert piped[1].split("\t")[-2:] == ["9", "stop"]
    assert piped[2].split("\t")[-1] == "WORKER_RESET"
    assert server.said[0].path == "/v1/tasks?state=failed&limit=5"
    shown = run("tasks", terminal=True).out
    assert TASK in shown.replace("\n", "")
    assert "\x1b]" not in shown
    assert json.loads(run("tasks", "--json").out) == PAGE


def test_one_task_is_shown_with_its_answer(run, server):
    server.on("GET", f"/v1/tasks/{TASK}", answer(body={**PAGE["tasks"][0], "text": "rain\nfalls"}))
    shown = run("tasks", TASK).out
    assert re.search(r"state: +completed", shown)
    assert re.search(r"usage: +completion_tokens 9", shown)
    assert shown.endswith("\nrain\nfalls\n")
    assert json.loads(run("tasks", TASK, "--json").out)["text"] == "rain\nfalls"


def test_the_queue_is_listed_in_order(run, server):
    entry = {"task_id": TASK, "position": 0, "priority": "batch", "waited_ms": 1500, "predicted_start_ms": 250}
    body = {"groups": [{"group": "haiku", "depth": {"interactive": 0, "batch": 1}, "capacity": 5, "entries": [entry]}]}
    server.on("GET", "/v1/queue", answer(body=body))
    assert run("queue").out.splitlines()[1] == f"haiku\t0\t{TASK}\tbatch\t1.5 s\t0.2 s"
    server.on("GET", "/v1/queue", answer(body={"groups": []}))
    assert "The queue is empty." in run("queue", terminal=True).out


DECISION = {
    "attempt": 1, "time_ms": 1_700_000_000_000, "selected_pool_id": "gpu0", "candidates_considered": ["cpu", "gpu0"],
    "filters_applied": [{"name": "context", "excluded": {"cpu": "needs 9000 tokens, has 4096"}}],
    "scores_ms": {"gpu0": 1200}, "tie_breakers_applied": ["least loaded"], "pinned": True, "fallback_used": True,
    "decision_reason": "earliest predicted end", "policy": "default", "policy_version": "1",
}  # fmt: skip


def test_explain_says_the_decision_in_words(run, server):
    body = {"task_id": TASK, "state": "running", "decisions": [DECISION], "waiting_for": {}}
    server.on("GET", f"/v1/tasks/{TASK}/decision", answer(body=body))
    assert run("explain", TASK).out.splitlines() == [
        "Attempt 1 went to pool gpu0: earliest predicted end.",
        "Considered: cpu, gpu0.",
        "Excluded by context: cpu (needs 9000 tokens, has 4096).",
        "Predicted ends: gpu0 in 1200 ms.",
        "Ties were broken by least loaded.",
        "The caller pinned the pool.",
        "None of the preferred pools was free, so another was taken.",
        "Decided by the policy default 1.",
    ]
    assert json.loads(run("explain", TASK, "--json").out) == body


def test_explain_says_what_a_waiting_task_waits_for(run, server):
    body = {"task_id": TASK, "state": "queued", "decisions": [], "waiting_for": {"cpu": "all 2 slots are taken"}}
    server.on("GET", f"/v1/tasks/{TASK}/decision", answer(body=body))
    assert run("explain", TASK).out == "Waits for pool cpu: all 2 slots are taken.\n"
    body = {"task_id": TASK, "state": "cancelled", "decisions": [], "waiting_for": {}}
    server.on("GET", f"/v1/tasks/{TASK}/decision", answer(body=body))
    assert run("explain", TASK).out == "The task is cancelled and was never placed.\n"


# --- server ---------------------------------------------------------------------------------------------------------

POOLS = {
    "pools": [
        {"pool_id": "cpu", "engine": "llamacpp", "engine_version": "b1", "model_ref": "haiku", "ready": True,
         "draining": False, "slots": 4, "leases": 1, "ctx": 1024, "device_mask": "cpu", "cause": ""},
        {"pool_id": "gpu", "engine": "llamacpp", "model_ref": "big", "ready": False, "draining": False, "slots": 0,
         "leases": 0, "ctx": 0, "cause": "out-of-memory"},
    ]
}  # fmt: skip


def test_pools_show_why_one_is_not_ready(run, server):
    common = {"engine": "llamacpp", "source": "", "memory": {}, "slots": 0, "active_leases": 0, "since_ms": 0,
              "reload": None, "drain": None}  # fmt: skip
    error = {"cause": "vram-oom", "detail": "it needs more", "advice": "Lower ctx.", "retry_ms": 5000}
    pools = {
        "pools": [
            {**common, "pool_id": "cpu", "state": "ready", "model_ref": "haiku", "model_source": "haiku",
             "devices": ["cpu"], "slots": 4, "active_leases": 1, "last_error": None},
            {**common, "pool_id": "gpu", "state": "failed", "model_ref": "big", "model_source": "big.gguf",
             "devices": [], "last_error": error},
        ]
    }  # fmt: skip
    server.on("GET", "/v1/pools", answer(body=pools))
    for pool in pools["pools"]:
        server.on("GET", f"/v1/pools/{pool['pool_id']}/health", answer(body=pool))
    lines = [line.split("\t") for line in run("pools").out.splitlines()]
    assert lines[1][:5] == ["cpu", "ready", "haiku", "cpu", "1/4"]
    assert (lines[2][1], lines[2][2], lines[2][-1]) == ("failed", "big (big.gguf)", "vram-oom")
    assert "Lower ctx." in run("pools").out


@pytest.mark.parametrize("ready, status", [(200, exits.OK), (503, exits.REFUSED)])
def test_status_says_by_its_exit_whether_the_server_is_ready(run, server, ready, status):
    server.on("GET", "/v1/pools", answer(body=POOLS))
    server.on("GET", "/readyz", answer(ready))
    server.on("GET", "/v1/queue", answer(body={"groups": []}))
    done = run("status")
    assert done.status == status
    assert "waiting:  0 tasks" in done.out
    assert json.loads(run("status", "--json").out)["ready"] is (ready == 200)


def test_status_of_something_else_than_a_server_of_ours_says_so(run, server):
    server.on("GET", "/v1/pools", answer(body=[]))
    done = run("status")
    assert done.status == exits.FAILED
    assert "is no llama-orch server" in done.err


def test_capabilities_are_a_table(run, server):
    body = {
        "api_version": "1",
        "engines": [{"engine": "llamacpp", "engine_version": "b1", "ctx_max": 9, "max_tokens_out": 9,
                     "supported_workloads": ["chat"], "slots_free": 1, "concurrency": 2}],
        "models": [{"id": "haiku"}],
        "devices": [],
    }  # fmt: skip
    server.on("GET", "/v1/capabilities", answer(body=body))
    shown = run("capabilities").out
    assert "llamacpp\tb1\t9\t9\tchat\t1/2" in shown
    assert shown.endswith("models: haiku\n")


def test_env_prints_exports_for_the_shell(run, server, call):
    assert run("env").out.splitlines() == [
        f"export OPENAI_BASE_URL={server.url}/v1",
        "export OPENAI_API_KEY=local",
        f"export ANTHROPIC_BASE_URL={server.url}",
        "export ANTHROPIC_API_KEY=local",
        f"export LLORCH_URL={server.url}",
    ]
    assert run("env", "--shell", "fish").out.startswith(f"set -gx OPENAI_BASE_URL {server.url}/v1")
    without = call("env")
    assert "export OPENAI_BASE_URL=http://127.0.0.1:8080/v1" in without.out
    assert "No server runs yet" in without.err


def test_stop_without_a_server_is_no_failure(call):
    done = call("stop")
    assert done.status == exits.OK
    assert "No server runs on" in done.err
    assert json.loads(call("stop", "--json").out)["stopped"] is False


# --- every command --------------------------------------------------------------------------------------------------

NEEDING_A_SERVER = sorted(
    name
    for name, found in commands().items()
    if found.needs == "server" and name not in {"run", "chat", "env", "gpus"} and not name.startswith("journal ")
)
ARGUMENTS = {
    "engines rm": ["x"],
    "engines show": ["x"],
    "models add": ["x"],
    "models fit": ["x"],
    "models pin": ["x"],
    "models pull": ["x"],
    "models rm": ["x"],
    "models show": ["x"],
    "models unpin": ["x"],
    "pools drain": ["x"],
    "pools logs": ["x"],
    "pools reload": ["x", "y"],
    "pools show": ["x"],
    "pools undrain": ["x"],
    "stream": [TASK],
    "cancel": [TASK],
    "explain": [TASK],
    "submit": ["hi"],
    "budgets remove": ["local"],
    "budgets set": ["local"],
    "budgets show": ["local"],
    "sessions rm": [TASK],
    "sessions show": [TASK],
    "keys change": ["key-1", "--name", "x"],
    "keys create": ["agent"],
    "keys revoke": ["key-1"],
    "keys rotate": ["key-1"],
    "keys show": ["key-1"],
}


@pytest.mark.parametrize("name", NEEDING_A_SERVER)
def test_without_a_server_every_command_says_how_to_start_one(call, name):
    done = call(*name.split(), *ARGUMENTS.get(name, []))
    assert done.status == exits.UNREACHABLE
    assert "no server runs on" in done.err
    assert "llama-orch serve" in done.err


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_explains_itself(call, name, capsys):
    assert call(*name.split(), "--help").status == exits.OK
    assert f"usage: llama-orch {name}" in capsys.readouterr().out
    found = commands()[name]
    assert found.details, "the command's function has a docstring"
    assert found.summary[0].islower()


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_refuses_an_option_that_it_does_not_have(call, name):
    done = call(*name.split(), *ARGUMENTS.get(name, []), *(["bash"] if name == "completion" else []), "--jsn")
    assert done.status == exits.USAGE
    assert "'--jsn' is not understood; did you mean '--json'?" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", sorted(name for name, found in commands().items() if found.needs != "nothing"))
def test_every_command_that_reads_the_configuration_refuses_a_wrong_one(call, name):
    done = call(
        *name.split(),
        *ARGUMENTS.get(name, []),
        "--set",
        "bnd=x",
        *{"run": ["hi"], "doctor": ["--no-self-test"]}.get(name, []),
        "--json",
    )
    if name == "doctor":
        assert "did you mean 'bind'" in done.out
        return
    assert done.status == exits.USAGE
    assert "did you mean 'bind'" in json.loads(done.err)["error"]["message"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["runn"], "'runn' is no command; did you mean 'run'?"),
        (["journal", "verfy"], "'verfy' is no command; did you mean 'verify'?"),
        (["tasks", "--state", "done"], "'done' is no value of --state"),
        (["run", "--seed", "x", "hi"], "--seed takes a whole number, not 'x'"),
        (["stream"], "the following arguments are required: TASK"),
        (["config"], "the following arguments are required: SUBCOMMAND"),
        (["run"], "there is no prompt"),
        (["run", ""], "there is no prompt"),
        (["run", "--raw", "--system", "x", "hi"], "--raw and --system exclude each other"),
        (["completion", "tcsh"], "'tcsh' is no value of SHELL"),
        (["tasks", "--url", "nonsense"], "'nonsense' is no server address"),
        (["serve", "--bind", "0.0.0.0:1"], "llama-orch: bind: '0.0.0.0:1' is reachable from outside this machine"),
        (["serve", "--bind", "x"], "takes host:port"),
        (["keys", "create"], "the following arguments are required: NAME"),
        (["keys", "create", "x", "--expires", "3"], "'3' is no time; write it as 90s, 15m, 12h or 30d"),
        (["keys", "create", "x", "--expires", "0d"], "a key that expires at once is of no use"),
        (["--quiet", "keys", "list"], "'--quiet' stands before the command, and belongs behind it"),
        (
            ["keys", "create", "x", "--budget", "money=3"],
            "'money=3' is no budget; write tokens=N, decode_ms=N or cost=N",
        ),
        (["keys", "change", "x"], "nothing is to be changed"),
        (["config", "check", "/no/such.yaml"], "cannot be read"),
        (["serve", "--data-dir", "/dev/null/x"], "cannot be used"),
    ],
)
def test_bad_usage_is_told_in_words_with_status_2(call, arguments, told):
    done = call(*arguments)
    assert done.status == exits.USAGE
    assert told in done.err
    assert done.err.startswith("llama-orch: ")
    assert "Traceback" not in done.err


def test_without_a_command_the_help_is_shown(call):
    done = call()
    assert done.status == exits.USAGE
    assert "usage: llama-orch" in done.err


def test_a_defect_is_told_without_a_traceback(call, monkeypatch):
    def broken(*arguments, **named):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("llama_orch.cli.completion.script", broken)
    done = call("completion", "bash")
    assert done.status == exits.FAILED
    assert done.err.startswith("llama-orch: this is a defect: ZeroDivisionError: oops\n")


@pytest.mark.parametrize("name", ["stats", "verify", "tail", "export", "snapshot"])
def test_a_journal_that_is_no_database_is_told_with_what_to_do(call, name, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "journal.db").write_bytes(b"no database" * 500)
    done = call("journal", name)
    assert done.status == exits.FAILED
    assert "journal.db" in done.err
    assert "--data-dir" in done.err
    assert "defect" not in done.err
