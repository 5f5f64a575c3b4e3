"""Steps of budgets.feature alone."""

from __future__ import annotations

from decimal import Decimal

from pytest_bdd import given, parsers, scenarios, then, when

from llama_orch.client import Budget, BudgetCap, NewSession, TaskFailedError, Token

from .conftest import ENDLESS, World, follows_through_a_kill, pool

scenarios("budgets.feature")

MILLION = Decimal(1_000_000)


@given(
    parsers.parse(
        "a server with 2 slots, at {inputs} for a million tokens of prompts and {outputs} for a million of answers"
    )
)
def a_server(world: World, inputs: str, outputs: str) -> None:
    world.serve({"pools": [pool(2)], "prices": {"mock": {"input": inputs, "cached": inputs, "output": outputs}}})


@given(parsers.parse("a session that may spend {tokens:d} tokens"))
def a_session(world: World, tokens: int) -> None:
    opened = world.client.open_session(NewSession(turn_limit=100, budgets=[BudgetCap(tokens=tokens)]))
    world.notes["session"] = opened.session_id


def budget(world: World) -> Budget:
    (found,) = world.client.budgets("session", world.notes["session"])
    return found


def ask(world: World, name: str, prompt: str, *, max_tokens: int = 5_000) -> None:
    world.submit(name, prompt, session_id=world.notes["session"], max_tokens=max_tokens)


@when(parsers.parse("a task of {tokens:d} tokens ends in it"))
def a_task_ends(world: World, tokens: int) -> None:
    ask(world, "task", f"spend [[mock tokens={tokens}]]")
    world.until("task", lambda task: task.ended, "the task's end")


@when("the client asks for another task in the session")
def another_task(world: World) -> None:
    ask(world, "another", "spend [[mock tokens=5]]")


@when("a task in it is cancelled while it speaks")
def cancelled(world: World) -> None:
    ask(world, "task", ENDLESS)
    with world.accepted("task").stream() as stream:
        assert any(isinstance(event, Token) and event.index == 9 for event in stream)
    world.tasks["task"].cancel()


@when(parsers.parse("{count:d} tasks of {tokens:d} tokens with max_tokens {most:d} run in it at once"))
def many(world: World, count: int, tokens: int, most: int) -> None:
    for n in range(count):
        ask(world, f"task {n}", f"spend [[mock tokens={tokens} rate=200]]", max_tokens=most)
        world.accepted(f"task {n}")


@when(parsers.parse("the operator raises the cap to {tokens:d} tokens"))
def raises(world: World, tokens: int) -> None:
    world.client.set_budget("session", world.notes["session"], BudgetCap(tokens=tokens))


@when(parsers.parse("the server is killed and started again while a task of {tokens:d} tokens speaks in it"))
def killed(world: World, tokens: int) -> None:
    ask(world, "task", f"spend [[mock tokens={tokens} rate=100]]")
    follows_through_a_kill(world, "task", 20)


def seen_tokens(world: World) -> int:
    said = 0
    try:
        with world.tasks["task"].stream() as stream:
            for event in stream:
                said += isinstance(event, Token)
    except TaskFailedError:
        pass
    return said


@then(parsers.parse("the session has spent the tokens of its prompt and {tokens:d} more"))
def has_spent(world: World, tokens: int) -> None:
    usage = world.tasks["task"].get().usage
    assert usage.completion_tokens == tokens
    assert budget(world).spent.tokens == usage.prompt_tokens + tokens


@then("the session has spent the tokens of its prompt and those that its readers saw")
def has_spent_what_was_seen(world: World) -> None:
    task = world.wait("task")
    assert task.state == "cancelled"
    assert seen_tokens(world) >= 10
    assert budget(world).spent.tokens == task.usage.prompt_tokens + seen_tokens(world)


@then(parsers.parse("it has spent {inputs} for a million of the one and {outputs} for a million of the other"))
def has_spent_money(world: World, inputs: str, outputs: str) -> None:
    usage = world.tasks["task"].get().usage
    owed = (usage.prompt_tokens * Decimal(inputs) + usage.completion_tokens * Decimal(outputs)) / MILLION
    assert owed > 0
    assert Decimal(budget(world).spent.cost) == owed


@then("nothing is reserved any more")
def nothing_reserved(world: World) -> None:
    held = budget(world).reserved
    assert (held.tokens, held.decode_ms, Decimal(held.cost)) == (0, 0, 0)


@then(parsers.parse('the task has failed with "{code}"'))
def has_failed(world: World, code: str) -> None:
    task = world.tasks["task"].get()
    assert task.state == "failed"
    assert task.error is not None
    assert task.error.code == code


@then("the task has completed")
def has_completed(world: World) -> None:
    assert world.tasks["task"].get().state == "completed"


@then(parsers.parse("every token that its readers saw is paid for, and the session has spent {cap:d} tokens at most"))
def paid_for(world: World, cap: int) -> None:
    spent = budget(world).spent.tokens
    assert 0 < spent <= cap
    assert spent == world.tasks["task"].get().usage.prompt_tokens + seen_tokens(world)
    assert seen_tokens(world) > 0


@then("all of them complete")
def all_complete(world: World) -> None:
    assert len(world.tasks) == 10
    assert {world.wait(name).state for name in world.tasks} == {"completed"}
