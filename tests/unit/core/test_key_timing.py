"""Whether the time that a refusal takes tells how close a guessed key was (attack 14).

Three kinds of guesses are timed in turns: wrong at the first character, wrong at the last, and unlike any key. Of each
block of calls the quickest counts, which the machine's other work can only miss, not make quicker; of all blocks the
median. A comparison that stops at the first difference shows in the same statistic, many times above what is allowed.
"""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable
from time import perf_counter_ns

import pytest

from llama_orch.api.auth import Authentication, Secrets
from llama_orch.core.errors import BadTokenError
from llama_orch.core.services.keys import KeySpec, digest_of
from llama_orch.core.settings import Settings

from ...support.stage import LOCAL, on_stage

BLOCKS, CALLS = 400, 12
#: of the median time; a leak of a single character of a key's 46 would be more than this in the leaky comparison
ALLOWED = 0.10
ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def guesses(key: bytes, seed: int) -> dict[str, list[bytes]]:
    """Wrong keys of each kind, all as long as the right one."""
    chance = random.Random(seed)

    def other(than: int) -> bytes:
        return bytes([chance.choice([c for c in ALPHABET if c != than])])

    return {
        "first": [other(key[0]) + key[1:] for _ in range(CALLS)],
        "last": [key[:-1] + other(key[-1]) for _ in range(CALLS)],
        "unlike": [bytes(chance.choice(ALPHABET) for _ in key) for _ in range(CALLS)],
    }


def spread(refuse: Callable[[bytes], object], key: bytes) -> float:
    """How far the medians of the kinds lie apart, as a share of the time that a refusal takes."""
    times: dict[str, list[int]] = {"first": [], "last": [], "unlike": []}
    kinds = list(itertools.permutations(times))
    for block in range(BLOCKS):
        wrong = guesses(key, block)
        for kind in kinds[block % len(kinds)]:  # in every order, so that none always comes first
            best = 1 << 60
            for guess in wrong[kind]:
                began = perf_counter_ns()
                refuse(guess)
                best = min(best, perf_counter_ns() - began)
            times[kind].append(best)
    medians = [statistics.median(found) for found in times.values()]
    return (max(medians) - min(medians)) / statistics.median(medians)


def leaky(expected: bytes) -> Callable[[bytes], bool]:
    """A comparison that stops where keys begin to differ: what must not be, and must be found."""

    def same(guess: bytes) -> bool:
        return all(left == right for left, right in zip(expected, guess, strict=True))

    return same


KEY = b"lo_" + b"kP3x" * 10 + b"Qz9"


def test_the_statistic_finds_a_comparison_that_leaks() -> None:
    assert spread(leaky(KEY), KEY) > 3 * ALLOWED


def asked_with(auth: Authentication, guess: bytes) -> object:
    return auth.caller_of(
        {
            "path": "/v1/tasks",
            "raw_path": b"/v1/tasks",
            "query_string": b"",
            "headers": [(b"authorization", b"Bearer " + guess)],
            "client": ("127.0.0.1", 1),
        }
    )


@pytest.mark.parametrize("which", ["journal", "environment", "machine"])
def test_a_refusal_tells_nothing(which: str) -> None:
    with on_stage() as stage:
        keys = stage.services.keys
        secrets = [stage.run(keys.create(KeySpec(name=f"k{n}"), LOCAL, ""))[1] for n in range(20)]
        given = Secrets(bootstrap=digest_of(b"bootstrap" + KEY[9:]), local=digest_of(KEY))
        auth = Authentication(keys, Settings(), secrets=given, provider=None, public=frozenset())
        right = {"journal": secrets[7].encode(), "environment": b"bootstrap" + KEY[9:], "machine": KEY}[which]

        def refuse(guess: bytes) -> None:
            try:
                asked_with(auth, guess)
            except BadTokenError:
                return
            pytest.fail("a wrong key was accepted")

        assert spread(refuse, right) < ALLOWED
        assert asked_with(auth, right)
