"""What tests of budgets share: prices, caps, what an account holds."""

from __future__ import annotations

from typing import Any

import msgspec

from llama_orch.core.settings import BudgetCapSettings, BudgetSettings, PriceSettings, Settings
from llama_orch.core.types import Amount

from ...support.engine import ScriptedAttempt
from ...support.stage import LOCAL, Stage, settings_for

DAY_MS = 86_400_000
SESSION = "00000000-0000-4000-8000-000000000007"
PRICES = {"*": PriceSettings(input="1", cached="0.1", output="2", second="0.000003")}


def priced(slots: dict[str, int], *, keys: list[BudgetCapSettings] | None = None, **admission: Any) -> Settings:
    plain = settings_for(slots, **admission)
    return msgspec.structs.replace(plain, prices=PRICES, budgets=BudgetSettings(keys=keys or []))


def put(stage: Stage, subject: str = "local", scope: str = "key", **caps: Any) -> None:
    stage.run(stage.services.budgets.put(scope, subject, BudgetCapSettings(**caps), LOCAL))


def spent(stage: Stage, account: str = "key/local/none") -> Amount:
    return stage.journal.head.budgets.accounts[account].spent


def held(stage: Stage, account: str = "key/local/none") -> Amount:
    return stage.journal.head.budgets.accounts[account].held


def say(stage: Stage, attempt: ScriptedAttempt, *words: str) -> None:
    attempt.say(*words)
    stage.settle()


def embeds(stage: Stage) -> None:
    """The pool's engine turns out to do embeddings."""
    stage.engines["p"].workloads = ("completion", "embedding")
    stage.pool_ready("p")
    stage.settle()


def finish(stage: Stage, task_id: str, words: int = 3) -> None:
    attempt = stage.attempt(task_id)
    attempt.start()
    say(stage, attempt, *["w"] * words)
    attempt.end()
    stage.settle()
