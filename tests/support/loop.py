"""The simulator's loop, under the name that tests know."""

from __future__ import annotations

from llama_orch.simulator.loop import StepLoop as StepLoop
