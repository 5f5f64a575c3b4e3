"""How hard hypothesis searches: always the same examples in the usual runs, many more and other ones on demand."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def search(examples: int, *, steps: int = 50) -> settings:
    """Settings for ``examples`` examples (twenty times as many with ``HYPOTHESIS_PROFILE=thorough``)."""
    return settings(
        max_examples=examples * (20 if THOROUGH else 1),
        stateful_step_count=steps,
        derandomize=not THOROUGH,
        deadline=None,
        # A failing life takes minutes to shrink, longer than a test may take: that is for the thorough runs.
        phases=(Phase.explicit, Phase.reuse, Phase.generate, *([Phase.shrink] if THOROUGH else [])),
        print_blob=THOROUGH,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )
