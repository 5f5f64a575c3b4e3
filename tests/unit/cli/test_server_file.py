"""`server.json`: a running server, never a recycled process id."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from llama_orch.cli import server_file
from llama_orch.cli.server_file import ServerFile, process_start


def this_process(data_dir, **changes) -> ServerFile:
    fields = {
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "url": "http://127.0.0.1:1",
        "version": "1",
        "data_dir": str(data_dir),
    }
    return ServerFile(**{**fields, **changes})


def test_a_running_server_is_read_back_and_its_file_is_private(tmp_path):
    written = this_process(tmp_path)
    path = server_file.write(tmp_path, written)
    assert server_file.read(tmp_path) == written
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    server_file.remove(tmp_path, os.getpid())
    assert server_file.read(tmp_path) is None


def test_a_recycled_process_id_is_no_server(tmp_path):
    server_file.write(tmp_path, this_process(tmp_path, started="boot:1"))
    assert server_file.read(tmp_path) is None


def test_a_server_that_ended_is_none_even_before_it_is_waited_for(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = process_start(child.pid)
    server_file.write(tmp_path, this_process(tmp_path, pid=child.pid, started=started))
    assert server_file.read(tmp_path) is not None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process_start(child.pid) == ""
    assert server_file.read(tmp_path) is None
    child.communicate()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"pid": "x", "started": "", "url": 1, "version": 2, "data_dir": 3}']
)
def test_a_file_that_is_no_server_file_means_no_server(tmp_path, content):
    (tmp_path / "server.json").write_text(content)
    assert server_file.read(tmp_path) is None
    server_file.remove(tmp_path, 1)


def test_the_file_of_another_process_is_left_alone(tmp_path):
    server_file.write(tmp_path, this_process(tmp_path))
    server_file.remove(tmp_path, os.getpid() + 1)
    assert server_file.read(tmp_path) is not None
