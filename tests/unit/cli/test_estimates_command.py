"""`estimates`: how predicted starts came out, and what they are made from."""

from __future__ import annotations

import json
from typing import Any

from .conftest import Answer

BAND: dict[str, Any] = {
    "band": "queue",
    "n": 1200,
    "coverage_permille": 803,
    "width_ms": 15_400,
    "pinball_us": 1_447_000,
    "average_coverage_permille": 695,
    "average_width_ms": 22_850,
    "average_pinball_us": 2_829_000,
}
POOL: dict[str, Any] = {
    "pool_id": "p",
    "group": "m",
    "decode_mtok_s": {"1": 50_000, "4": 31_250},
    "prefill_mtok_s": 812_000,
    "accept_us": 4_200,
    "accept_off_us": 900,
    "load_ms": 8_300,
    "load_off_ms": 400,
}
NEW = POOL | {"pool_id": "q", "decode_mtok_s": {}, "prefill_mtok_s": 0, "load_ms": 0}
LENGTH: dict[str, Any] = {
    "group": "m",
    "owner": "",
    "n": 90,
    "mean_tokens": 180,
    "p10_tokens": 20,
    "p50_tokens": 120,
    "p90_tokens": 410,
}
BODY: dict[str, Any] = {
    "groups": [{"group": "", "bands": [BAND]}, {"group": "m", "bands": [BAND | {"pinball_us": 900}]}],
    "pools": [POOL, NEW],
    "lengths": [LENGTH, LENGTH | {"owner": "ann"}],
}


def test_scores_stand_beside_those_of_the_moving_average(call, server):
    server.on("GET", "/v1/estimates", Answer(body=BODY))
    done = call("estimates", "--url", server.url)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "GROUP\tLOAD\tSTARTS\tCOVERED\tWIDTH\tPINBALL\tMOVING AVERAGE",
        "(all)\tqueue\t1200\t80.3 %\t15.4 s\t1.4 s\t2.8 s",
        "m\tqueue\t1200\t80.3 %\t15.4 s\t0.9 ms\t2.8 s",
    ]


def test_what_was_learnt_says_what_was_not_measured(call, server):
    server.on("GET", "/v1/estimates", Answer(body=BODY))
    assert call("estimates", "--learnt", "--url", server.url).out.splitlines() == [
        "POOL\tGROUP\tTOKENS/S BY STREAMS\tPROMPT TOKENS/S\tTAKES OVER IN\tLOADS IN",
        "p\tm\t1: 50.0, 4: 31.2\t812\t4.2 ms\t8.3 s",
        "q\tm\tnot measured\tnot measured\t4.2 ms\tnot measured",
        "",
        "GROUP\tCALLER\tANSWERS\tMEAN TOKENS\t10 %\t50 %\t90 %",
        "m\t(all)\t90\t180\t20\t120\t410",
        "m\tann\t90\t180\t20\t120\t410",
    ]


def test_before_anything_started_it_says_so(call, server):
    server.on("GET", "/v1/estimates", Answer(body={"groups": [], "pools": [], "lengths": []}))
    assert "No task with a prediction has started yet." in call("estimates", "--url", server.url, terminal=True).out


def test_json_is_the_servers_answer(call, server):
    server.on("GET", "/v1/estimates", Answer(body=BODY))
    assert json.loads(call("estimates", "--json", "--url", server.url).out) == BODY
