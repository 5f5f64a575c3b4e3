"""The command line against real servers: piped, at a terminal, as JSON; bad input; interruption."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from llama_orch.cli import exits, server_file

from .conftest import wait_until

#: goes on until it is cancelled, at a pace that a person could read
ENDLESS = "[[mock fault=endless rate=50]] go on"
QUICK = "[[mock tokens=5]] say"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def home(mock_server):
    """The home whose server is up."""
    return mock_server.home


@pytest.fixture
def home_alone(new_server):
    """A home without a server, without pools."""
    return new_server({"pools": []}).home


def submitted(home, prompt: str, *arguments: str) -> str:
    return home.call("submit", "--raw", prompt, *arguments).out.strip()


# --- one command after the other, in a pipe and as JSON -------------------------------------------------------------


def test_run_prints_the_answer_and_nothing_else_in_a_pipe(home):
    done = home.call("run", QUICK)
    assert (done.status, done.err) == (exits.OK, "")
    assert len(done.out.split()) == 5


def test_run_with_one_seed_says_one_thing(home):
    first, second, other = (home.call("run", QUICK, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == second != other


def test_run_as_json_holds_text_usage_and_where_it_ran(home):
    told = home.json("run", QUICK, "--seed", "9")
    assert (told["started"]["pool_id"], told["started"]["seed"]) == ("mock", 9)
    assert told["end"]["usage"]["completion_tokens"] == 5
    assert len(told["text"].split()) == 5


def test_run_reads_standard_input(home):
    assert len(home.call("run", "-", stdin=QUICK).out.split()) == 5


def test_run_at_a_terminal_tells_how_it_went(home):
    done = home.at_terminal("run", "[[mock tokens=20 rate=100]] say", "--seed", "4")
    assert done.status == exits.OK
    last = done.out.strip().splitlines()[-1]
    assert re.search(r"20 tokens · [\d.]+ tok/s", last)
    assert last.endswith("on mock · seed 4")


def test_a_task_goes_through_all_commands(home):
    task = submitted(home, "[[mock tokens=40 rate=100]] say", "--seed", "5")
    uuid.UUID(task)
    streamed = home.call("stream", task)
    assert streamed.status == exits.OK
    assert len(streamed.out.split()) == 40
    frames = [json.loads(line) for line in home.call("stream", task, "--json").out.splitlines()]
    assert [frames[0]["event"], frames[-1]["event"]] == ["started", "end"]
    texts = [frame["data"]["t"] for frame in frames if frame["event"] == "token"]
    assert "".join(texts).strip() == streamed.out.strip()
    middle = next(frame["id"] for frame in frames if frame["data"].get("i") == 19)
    rest = [json.loads(line) for line in home.call("stream", task, "--from", middle, "--json").out.splitlines()]
    assert [frame["data"]["t"] for frame in rest if frame["event"] == "token"] == texts[20:]
    shown = home.json("tasks", task)
    assert (shown["state"], shown["seed"], shown["usage"]["completion_tokens"]) == ("completed", 5, 40)
    assert "text" not in home.call("tasks").out
    assert task in home.call("tasks", "--state", "completed").out
    assert home.json("tasks", "--limit", "1")["tasks"][0]["task_id"] == task
    assert home.call("explain", task).out.startswith("Attempt 1 went to pool mock: ")
    assert home.json("explain", task)["decisions"][0]["selected_pool_id"] == "mock"
    assert home.call("cancel", task).status == exits.OK
    assert home.json("tasks", task)["state"] == "completed"


def test_a_repeated_key_is_the_same_task_and_another_request_under_it_is_refused(home):
    first, again = (submitted(home, QUICK, "--key", "one", "--seed", "1") for _ in range(2))
    assert first == again
    other = home.call("submit", "--raw", "[[mock tokens=6]] other", "--key", "one", "--seed", "1", "--json")
    assert (other.status, json.loads(other.err)["error"]["code"]) == (exits.FAILED, "CONFLICT")


def test_what_waits_is_in_the_queue_and_cancel_takes_it_out(home):
    running = [submitted(home, ENDLESS) for _ in range(2)]
    waiting = submitted(home, QUICK, "--priority", "batch")
    groups = home.json("queue")["groups"]
    assert [entry["task_id"] for group in groups for entry in group["entries"]] == [waiting]
    assert waiting in home.call("queue").out
    assert home.json("tasks", waiting)["state"] == "queued"
    assert "Waits for pool mock: all 2 slots are taken." in home.call("explain", waiting).out
    assert home.call("cancel", waiting).status == exits.OK
    assert home.json("tasks", waiting)["state"] == "cancelled"
    for task in running:
        home.call("cancel", task)
    ended = home.call("stream", running[0])
    assert ended.status == exits.TASK_FAILED
    assert "The queue is empty." in home.at_terminal("queue").out


def test_the_servers_own_commands(home, mock_server):
    status = home.json("status")
    assert (status["ready"], status["url"], status["pid"]) == (True, mock_server.url, mock_server.process.pid)
    assert home.call("status").out.startswith(f"url:      {mock_server.url} (ready)\n")
    assert home.json("pools")["pools"][0]["pool_id"] == "mock"
    assert home.call("pools").out.splitlines()[1].startswith("mock\tready\tmock\t")
    assert "mock" in home.at_terminal("pools").out
    assert home.json("capabilities")["engines"][0]["engine"] == "mock"
    assert home.call("capabilities").out.strip().endswith("models: mock")
    shell = subprocess.run(
        ["bash", "-c", 'eval "$1"; printf "%s" "$OPENAI_BASE_URL"', "bash", home.call("env").out],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shell.stdout == f"{mock_server.url}/v1"


def test_the_journals_commands(home, tmp_path):
    task = submitted(home, QUICK)
    home.call("stream", task)
    events = [json.loads(line) for line in home.call("journal", "tail", "-n", "200", "--json").out.splitlines()]
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(seqs)
    names = [event["name"] for event in events if event.get("stream") == f"task:{task}"]
    assert names[:3] == ["task.admitted", "task.placed", "task.started"]
    assert "task.ended" in names
    assert home.call("journal", "tail", "-n", "3").out.count("\n") == 3
    assert home.json("journal", "stats")["by_name"]["task.admitted"] >= 1
    path = tmp_path / "all.jsonl"
    told = home.json("journal", "export", str(path), "--texts")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[-1]["end"]["events"] == told["events"] == sum("seq" in line for line in lines)
    assert any(line["name"] == "transcript" and line["text"] for line in lines[:-1])
    assert path.stat().st_mode & 0o777 == 0o600
    assert home.call("journal", "verify").status == exits.OK
    assert home.json("journal", "verify")["ok"] is True
    assert home.call("journal", "migrate").status == exits.OK


def test_the_journals_commands_ask_a_server_that_is_named(home, mock_server, tmp_path):
    named = ("--url", mock_server.url, "--data-dir", str(tmp_path / "elsewhere"))
    task = submitted(home, QUICK)
    home.call("stream", task)
    told = [json.loads(line) for line in home.call("journal", "tail", "-n", "5", "--json", *named).out.splitlines()]
    assert len(told) == 5
    assert home.json("journal", "stats", *named)["by_name"]["task.admitted"] >= 1
    assert home.json("journal", "verify", *named)["ok"] is True
    lines = home.call("journal", "export", *named).out.splitlines()
    assert json.loads(lines[-1])["end"]["events"] == len(lines) - 1


def test_journal_verify_names_the_frame_that_was_edited(new_server):
    server = new_server({"pools": [{"id": "mock", "engine": "mock", "model": "mock"}]}).start()
    server.home.call("run", QUICK)
    assert server.stop() == exits.OK
    with contextlib.closing(sqlite3.connect(server.home.data_dir / "journal.db")) as database:
        frame = database.execute("SELECT min(frame_no) FROM frames WHERE instr(facts, 'mock')").fetchone()[0]
        database.execute("UPDATE frames SET facts = replace(facts, 'mock', 'mick') WHERE frame_no = ?", (frame,))
        database.commit()
    done = server.home.call("journal", "verify")
    assert done.status == exits.FAILED
    assert done.out.startswith(f"frame {frame} (event")
    assert "edited" in done.out
    assert server.home.call("journal", "verify", "--json").status == exits.FAILED


def test_journal_tail_follows_until_it_is_interrupted(home):
    process = home.popen("journal", "tail", "-f", "-n", "1", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline(), "it is there and follows"
        task = submitted(home, QUICK)
        names = []
        while "task.ended" not in names:
            event = json.loads(process.stdout.readline())
            if event.get("stream") == f"task:{task}":
                names.append(event["name"])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (exits.INTERRUPTED, b"")
    finally:
        process.kill()
        process.wait()


# --- interruption ---------------------------------------------------------------------------------------------------


def test_ctrl_c_cancels_the_task_of_run(home):
    done = home.at_terminal("run", ENDLESS, "--raw", typed=[(" ", b"\x03")])
    assert done.status == exits.INTERRUPTED
    assert "Cancelled after" in done.out
    assert "Traceback" not in done.out
    newest = home.json("tasks", "--limit", "1")["tasks"][0]
    assert newest["state"] == "cancelled"


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, exits.TERMINATED), (signal.SIGHUP, exits.TERMINATED)])
def test_a_signal_to_run_cancels_its_task(home, number, status):
    process = home.popen("run", "--raw", ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in err
    assert home.json("tasks", "--limit", "1")["tasks"][0]["state"] == "cancelled"


def test_a_reader_that_goes_away_cancels_the_task_of_run(home):
    process = home.popen("run", "--raw", ENDLESS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert (process.wait(60), err) == (exits.PIPE_CLOSED, b"")
    assert home.json("tasks", "--limit", "1")["tasks"][0]["state"] == "cancelled"


def test_leaving_a_stream_leaves_the_task_alone(home):
    task = submitted(home, ENDLESS)
    done = home.at_terminal("stream", task, typed=[(" ", b"\x03")])
    assert done.status == exits.INTERRUPTED
    assert f"llama-orch stream {task} --from" in done.out
    assert home.json("tasks", task)["state"] == "running"
    home.call("cancel", task)


@pytest.mark.parametrize(
    "command", [["tasks"], ["queue"], ["pools"], ["journal", "export"], ["completion", "bash"], ["config", "schema"]]
)
def test_a_pipe_that_closes_early_makes_no_noise(home, command):
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}', "bash", sys.executable, "-m", "llama_orch.cli.main", *command],
        env=home.environ, capture_output=True, text=True, cwd=home.root,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode in {exits.OK, exits.PIPE_CLOSED}


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed_are_no_defect(home, closed):
    done = subprocess.run(
        ["bash", "-c", f'"$@" {closed}', "bash", sys.executable, "-m", "llama_orch.cli.main", "run", QUICK],
        env=home.environ, capture_output=True, text=True, cwd=home.root,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (exits.OK, "")


def test_a_full_disk_behind_standard_output_is_told(home):
    with Path("/dev/full").open("wb") as full:
        process = home.popen("config", "schema", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == exits.FAILED
    assert err.startswith(b"llama-orch: No space left on device")


# --- chat -----------------------------------------------------------------------------------------------------------


def test_chat_at_a_terminal(home):
    done = home.at_terminal(
        "chat",
        typed=[
            ("> ", b"[[mock tokens=3]] one\r"),
            ("> ", b"/reset\r"),
            ("> ", b"[[mock fault=endless rate=50]] two\r"),
            (" ", b""),
            ("\n", b""),
            (" ", b"\x03"),
            ("> ", b"/what\r"),
            ("> ", b"\x04"),
        ],
    )
    assert done.status == exits.OK
    assert "Talking with mock." in done.out
    assert "Cancelled after" in done.out
    assert "/what is no instruction" in done.out


def test_chat_in_a_pipe_answers_each_line(home):
    done = home.call("chat", "--json", stdin="[[mock tokens=2]] a\n/reset\n[[mock tokens=3]] b\n")
    assert done.status == exits.OK
    assert [json.loads(line)["end"]["tokens_out"] for line in done.out.splitlines()] == [2, 3]


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, status, told",
    [
        (["run", "hi", "--model", "mok"], exits.FAILED, "mock"),
        (["run", "hi", "--temperature", "9"], exits.USAGE, "temperature"),
        (["run", "hi", "--max-tokens", "0"], exits.USAGE, "max_tokens"),
        (["run", "hi", "--seed", "-1"], exits.USAGE, "seed"),
        (["run", "hi", "--session", "x"], exits.USAGE, "session_id"),
        (["run", "hi", "--pin", "nowhere"], exits.USAGE, "nowhere"),
        (["stream", "not-an-id"], exits.FAILED, "not-an-id"),
        (["stream", UNKNOWN], exits.FAILED, UNKNOWN),
        (["cancel", UNKNOWN], exits.FAILED, UNKNOWN),
        (["cancel", "../pools"], exits.FAILED, ""),
        (["explain", UNKNOWN], exits.FAILED, UNKNOWN),
        (["tasks", UNKNOWN], exits.FAILED, UNKNOWN),
        (["tasks", "--limit", "-3"], exits.USAGE, "limit"),
        (["tasks", "--session", "x"], exits.USAGE, "session_id"),
        (["journal", "tail", "-n", "x"], exits.USAGE, "--lines"),
        (["journal", "export", "/no/such/dir/file"], exits.FAILED, "/no/such/dir/file"),
        (["queue", "--url", "http://127.0.0.1:1"], exits.UNREACHABLE, "does not answer"),
        (["submit", "--file", "/no/such"], exits.USAGE, "--file /no/such"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_with_what_is_wrong(home, arguments, status, told):
    plain = home.call(*arguments)
    assert plain.status == status, plain.err
    assert told in plain.err
    assert plain.err.startswith("llama-orch: ")
    assert "Traceback" not in plain.err
    as_json = home.call(*arguments, "--json")
    assert as_json.status == status
    assert json.loads(as_json.err)["error"]["message"]
    assert as_json.out == ""


def test_input_that_is_no_text_is_refused(home):
    done = home.call("run", stdin=b"\xff\xfe\x00")
    assert done.status == exits.USAGE
    assert "UTF-8" in done.err


# --- starting and stopping ------------------------------------------------------------------------------------------


def test_serve_prints_where_it_is_and_stops_in_order(new_server):
    server = new_server({"pools": []}, "--json").start(ready=False)
    wait_until(lambda: server.out_path.read_text().endswith("\n"), "the line that it prints")
    told = json.loads(server.out_path.read_text())
    assert told["openai_base_url"] == f"{server.url}/v1"
    assert told["data_dir"] == str(server.home.data_dir)
    assert server.home.data_dir.stat().st_mode & 0o777 == 0o700
    assert (server.home.data_dir / "server.json").stat().st_mode & 0o777 == 0o600
    assert all(path.stat().st_mode & 0o077 == 0 for path in server.home.data_dir.rglob("*"))
    assert server.home.call("status").status == exits.REFUSED
    stopped = server.home.json("stop")
    assert (stopped["stopped"], stopped["pid"]) == (True, server.process.pid)
    assert server.process.wait(60) == exits.OK
    assert not (server.home.data_dir / "server.json").exists()
    last = [json.loads(line) for line in server.home.call("journal", "tail", "-n", "1", "--json").out.splitlines()]
    assert last[0]["name"] == "server.stopped"
    assert server.home.call("status").status == exits.UNREACHABLE


def test_serve_without_a_configuration_prints_where_it_is_for_people(new_server):
    server = new_server().start(ready=False)
    told = server.out_path.read_text().splitlines()
    assert told[0].startswith("llama-orch ")
    assert told[1:] == [
        f"  url:  {server.url}",
        f"  data: {server.home.data_dir}",
        f"  export OPENAI_BASE_URL={server.url}/v1",
    ]
    assert server.url.startswith("http://127.0.0.1:")
    assert [pool["model_ref"] for pool in server.get("/v1/pools")["pools"]] == ["haiku"]
    assert server.stop() == exits.OK


def test_an_address_that_is_taken_is_told(new_server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        home = new_server({"pools": []}).home
        done = home.call("serve", "--bind", address)
    assert done.status == exits.USAGE
    assert address in done.err
    assert "another port" in done.err


def test_a_data_directory_that_another_server_uses_is_told(mock_server):
    done = mock_server.home.call("serve", "--bind", "127.0.0.1:0")
    assert done.status == exits.FAILED
    assert mock_server.url in done.err
    assert "llama-orch stop" in done.err
    assert server_file.read(mock_server.home.data_dir) is not None, "the running server's file is left alone"


def test_a_journal_that_is_no_database_is_told(new_server):
    home = new_server({"pools": []}).home
    home.data_dir.mkdir(mode=0o700)
    (home.data_dir / "journal.db").write_bytes(b"no database at all" * 100)
    done = home.call("serve", "--bind", "127.0.0.1:0")
    assert done.status == exits.FAILED
    assert "journal.db" in done.err
    assert "Traceback" not in done.err


def test_a_disk_without_room_for_the_journal_is_told(home_alone):
    """A limit on the size of files stands in for a full disk."""
    done = subprocess.run(
        ["bash", "-c", 'ulimit -f 4; exec "$@"', "bash", sys.executable, "-m", "llama_orch.cli.main", "serve", "--bind", "127.0.0.1:0"],
        env=home_alone.environ, capture_output=True, text=True, cwd=home_alone.root,
    )  # fmt: skip
    assert done.returncode == exits.FAILED
    assert "journal.db cannot be opened" in done.stderr
    assert "Free disk space" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_killed_server_is_no_server_and_the_next_one_takes_over(new_server):
    server = new_server({"pools": [{"id": "mock", "engine": "mock", "model": "mock"}]}).start()
    task = submitted(server.home, "[[mock tokens=200 rate=50]] long")
    reader = server.home.popen("stream", task, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader.stdout is not None
    while json.loads(reader.stdout.readline())["event"] != "token":
        pass
    server.kill()
    assert server.home.call("status").status == exits.UNREACHABLE
    server.restart()
    out = reader.stdout.read()
    assert reader.wait(60) == exits.OK
    frames = [json.loads(line) for line in out.splitlines()]
    tokens = [frame for frame in frames if frame["event"] == "token"]
    assert [frame["data"]["i"] for frame in tokens] == list(range(1, 200))
    assert "reconnected" in [frame["event"] for frame in frames]
    assert server.stop() == exits.OK


def test_a_second_signal_ends_a_server_that_takes_its_time(new_server):
    server = new_server({"pools": [{"id": "mock", "engine": "mock", "model": "mock"}]}).start()
    process = server.process
    submitted(server.home, ENDLESS)
    for _ in range(3):
        os.kill(process.pid, signal.SIGTERM)
    assert process.wait(60) in {exits.OK, exits.TERMINATED}
