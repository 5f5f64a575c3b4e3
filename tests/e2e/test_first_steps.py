"""What a newcomer does first: nothing but the installed package, real llama.cpp, the bundled model."""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from llama_orch.cli import exits, server_file
from llama_orch.cli.server_file import process_start
from llama_orch.haiku.judge import judge

pytestmark = pytest.mark.real_llama


def is_haiku(text: str) -> bool:
    return len([line for line in text.strip().splitlines() if line.strip()]) == 3


def engine_processes(home) -> list[int]:
    records = [json.loads(path.read_text()) for path in (home.data_dir / "engines").glob("*.json")]
    return [record["pid"] for record in records if process_start(record["pid"])]


def test_run_needs_neither_server_nor_configuration_and_leaves_nothing_running(home):
    done = home.call("run", "--seed", "7", "Write a haiku about rain")
    assert (done.status, done.err) == (exits.OK, "")
    assert is_haiku(done.out)
    assert server_file.read(home.data_dir) is None
    assert engine_processes(home) == []
    again = home.call("run", "--seed", "7", "Write a haiku about rain")
    assert again.out == done.out


def test_run_at_a_terminal_without_a_server_shows_what_it_does(home):
    done = home.at_terminal("run", "Write a haiku about snow")
    assert done.status == exits.OK
    assert "starting a server for this call" in done.out
    assert "on haiku · seed " in done.out


def test_runs_at_once_all_get_their_answer_whoever_starts_the_server(home):
    processes = [
        home.popen("run", f"Write a haiku about {topic}", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for topic in ("rain", "snow", "the sea", "autumn")
    ]
    ended = [process.communicate(timeout=120) for process in processes]
    assert {process.returncode for process in processes} == {exits.OK}, ended
    assert all(is_haiku(out.decode()) for out, _ in ended)
    assert engine_processes(home) == []


def test_a_run_that_is_killed_leaves_no_server_behind(home, eventually):
    process = home.popen("chat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Write a haiku about rain\n")
    process.stdin.flush()
    assert process.stdout.readline(), process.communicate()
    running = server_file.read(home.data_dir)
    assert running is not None
    engines = engine_processes(home)
    assert len(engines) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    eventually(lambda: not process_start(running.pid), "the server's end")
    assert not any(process_start(pid) for pid in engines)


def test_init_config_check_serve_run_status_stop(new_server, home):
    path = home.root / "llama-orch.yaml"
    assert home.call("init", str(path)).out.strip() == str(path)
    assert home.call("config", "check", str(path)).out.startswith(f"{path}: sound\n")
    home.environ["LLORCH_CONFIG"] = str(path)
    server = new_server(None, home=home).start()
    told = home.json("run", "Write a haiku about the sea")
    assert judge(told["text"]) is not None
    assert told["started"]["engine"] == "llamacpp"
    assert server_file.read(home.data_dir) is not None, "a server that was up stays up"
    (engine,) = engine_processes(home)
    assert home.call("stop").status == exits.OK
    assert server.process.wait(60) == exits.OK
    assert not process_start(engine)


def test_doctor_passes_its_self_test(home):
    done = home.call("doctor", "--set", "bind=127.0.0.1:0")
    assert done.status == exits.OK, done.out
    for name in ("preload", "decode", "cancel", "metrics", "log"):
        assert f"ok       {name}: " in done.out
    assert "the task is cancelled, after" in done.out
    findings = home.json("doctor", "--no-self-test", "--set", "bind=127.0.0.1:0")["findings"]
    assert {finding["verdict"] for finding in findings} <= {"ok", "warning"}


def test_an_openai_client_works_with_the_printed_environment(haiku_server):
    import openai

    variables = haiku_server.home.json("env")
    client = openai.OpenAI(base_url=variables["OPENAI_BASE_URL"], api_key=variables["OPENAI_API_KEY"])
    whole = client.chat.completions.create(
        model="haiku", messages=[{"role": "user", "content": "Write a haiku about rain"}], seed=7
    )
    assert is_haiku(whole.choices[0].message.content or "")
    parts = client.chat.completions.create(
        model="haiku", messages=[{"role": "user", "content": "Write a haiku about rain"}], seed=7, stream=True
    )
    streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert is_haiku(streamed)


def test_a_model_file_that_is_damaged_makes_an_unready_pool_with_advice(new_server, tmp_path, eventually):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + os.urandom(64))
    server = new_server({"pools": [{"id": "bad", "model": str(broken)}]}).start(ready=False)
    eventually(lambda: server.get("/v1/pools")["pools"][0]["cause"] not in {"", "starting"}, "the pool's cause")
    done = server.home.call("status")
    assert done.status == exits.REFUSED
    assert "not ready" in done.out
    refused = server.home.call("run", "hi")
    assert refused.status == exits.REFUSED
    assert refused.err.startswith("llama-orch: ")
