"""The SDK's types are the server's: the same fields under the same names, and an exception for each code.

They are written down twice on purpose, since the SDK imports nothing of the server; this is what keeps them one.
"""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import pytest

from llama_orch.api.problems import error_types
from llama_orch.api.render import sse
from llama_orch.api.resources import budgets, models, queue, sessions, tasks
from llama_orch.client import events, types
from llama_orch.client.errors import BY_CODE
from llama_orch.core import errors
from llama_orch.core import types as core_types
from llama_orch.core.events.task import TaskEnded, TaskStarted
from llama_orch.core.logprobs import TokenLogprob
from llama_orch.core.services import budgets as budget_services
from llama_orch.core.services import outcomes
from llama_orch.core.services import tasks as task_services
from llama_orch.core.settings import BudgetCapSettings

#: codes of the command line and the configuration, which no route answers
NOT_ANSWERED = {"INVALID_CONFIG", "DECODE_TIMEOUT", "WORKER_RESET", "INTERRUPTED"}

PAIRS = [
    (types.TaskRequest, core_types.TaskRequest),
    (types.ChatMessage, core_types.ChatMessage),
    (types.Placement, core_types.PlacementRequest),
    (types.Admission, tasks.Accepted),
    (types.Task, task_services.TaskInfo),
    (types.Usage, task_services.Usage),
    (types.Problem, task_services.TaskProblem),
    (types.Choice, outcomes.Choice),
    (types.ToolCall, outcomes.ToolCall),
    (types.TokenLogprob, TokenLogprob),
    (types.TaskPage, tasks.TaskPage),
    (types.Session, sessions.SessionBody),
    (types.NewSession, sessions.NewSession),
    (types.Sessions, sessions.SessionsBody),
    (types.Budget, budget_services.BudgetView),
    (types.Caps, budget_services.Caps),
    (types.Quantities, budget_services.Quantities),
    (types.Budgets, budgets.BudgetsBody),
    (types.BudgetCap, BudgetCapSettings),
    (types.QueueEntry, queue.QueueEntry),
    (types.QueueGroup, queue.GroupQueueBody),
    (types.Queue, queue.QueueBody),
    (types.Pool, core_types.PoolView),
    (types.Model, models.ModelBody),
]


def names(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """The fields that take one of a few words, and these words."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, hint in get_type_hints(kind).items():
        for option in (hint, *get_args(hint)):
            if get_origin(option) is Literal:
                found[name] = get_args(option)
    return found


@pytest.mark.parametrize("ours, theirs", PAIRS, ids=lambda kind: kind.__name__)
def test_a_type_has_the_servers_fields_and_words(ours: type[msgspec.Struct], theirs: type[msgspec.Struct]) -> None:
    assert names(ours) == names(theirs)
    assert choices(ours) == {name: words for name, words in choices(theirs).items() if name in names(ours)}


def test_every_code_that_a_route_may_answer_is_an_exception() -> None:
    codes = {kind.code for kind in error_types() if kind.__module__ == errors.__name__}
    assert set(BY_CODE) == codes - NOT_ANSWERED


def filled(kind: Any) -> Any:
    """An event with a value for all that has no default."""
    required = [field for field in msgspec.structs.fields(kind) if field.required]
    return kind(**{field.name: 0 if field.type is int else "x" for field in required})


def test_frames_have_the_fields_of_events() -> None:
    own = {"frame_id"}
    lost = msgspec.structs.replace(filled(TaskStarted), kv_lost=True)
    assert names(events.Started) - own == set(sse.started_data(lost))
    assert names(events.End) - own == set(sse.end_data(filled(TaskEnded)))
