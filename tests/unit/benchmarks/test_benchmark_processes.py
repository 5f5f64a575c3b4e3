from __future__ import annotations

import os
import sys

import pytest
from benchmarks.processes import Service, StartError, descendants, free_port, parse_stat, wait_until

SLEEPER = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def start(tmp_path):
    """Starts Python programs as services, and stops them."""
    services = []

    def start_service(program: str) -> Service:
        service = Service("program", [sys.executable, "-c", program], {}, tmp_path / f"{len(services)}.log")
        services.append(service)
        return service

    yield start_service
    for service in services:
        service.stop()


def test_the_stat_line_is_read_behind_a_name_with_brackets_and_blanks():
    fields = "S 17 1 1 0 -1 0 0 0 0 0 100 200 300 400 20 0 1"
    parent, waited_s = parse_stat(f"42 (a) b (c)) {fields}")
    assert parent == 17
    assert waited_s == pytest.approx((300 + 400) / os.sysconf("SC_CLK_TCK"))


def test_descendants_are_found_at_every_depth():
    assert descendants({2: 1, 3: 2, 4: 3, 5: 9, 1: 0}, 2) == [2, 3, 4]


def test_cpu_of_children_and_of_threads_that_ended_is_counted(start):
    burn = "t=time.process_time()\nwhile time.process_time()-t < 0.2: pass\n"
    service = start(
        "import subprocess, sys, threading, time\n"
        f"def work():\n    t = time.process_time()\n    while time.process_time() - t < 0.2: pass\n"
        "thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        f"subprocess.run([sys.executable, '-c', 'import time\\n' + {burn!r}])\n"
        "print('done', flush=True); time.sleep(600)"
    )
    assert wait_until(lambda: "done" in service.last_words(), 60)
    assert service.usage().cpu_s >= 0.4
    assert service.usage().rss_mb > 1


def test_stop_ends_what_left_the_process_tree(start):
    service = start(
        "import subprocess, sys\n"
        f"p = subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True, stdout=subprocess.PIPE)\n"
        "p.stdout.readline()"
    )
    assert wait_until(lambda: service._process.poll() is not None, 60)
    assert len(service.pids()) == 1
    service.stop()
    assert service.pids() == []


def test_a_program_that_ends_instead_of_serving_is_told_with_its_last_words(start):
    with pytest.raises(StartError, match=r"status 3.*no such model"):
        start("import sys; print('no such model', flush=True); sys.exit(3)").wait_ready(free_port(), "/health")


def test_a_program_that_never_answers_is_told(start):
    with pytest.raises(StartError, match="did not answer GET /health"):
        start(SLEEPER).wait_ready(free_port(), "/health", limit_s=0.2)


def test_settings_of_the_caller_do_not_reach_the_target(start, monkeypatch):
    monkeypatch.setenv("LLORCH_BIND", "127.0.0.1:1")
    service = start("import os; print(sorted(k for k in os.environ if k.startswith('LLORCH_')), 'end', flush=True)")
    assert wait_until(lambda: "end" in service.last_words(), 60)
    assert service.last_words().startswith("[]")
