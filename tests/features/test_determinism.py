"""Steps of determinism.feature alone."""

from __future__ import annotations

from pytest_bdd import parsers, scenarios, then, when

from llama_orch.client import Started, TaskHandle, TaskRequest, Token

from .conftest import MODEL, World, follows_through_a_kill

scenarios("determinism.feature")


def ask(world: World, tokens: int, seed: int | None, rate: int = 0) -> TaskHandle:
    prompt = f"The same words [[mock tokens={tokens}{f' rate={rate}' if rate else ''}]]"
    handle = world.client.submit(TaskRequest(model_ref=MODEL, prompt=prompt, seed=seed, max_tokens=500))
    world.tasks[f"asked {len(world.tasks)}"] = handle
    return handle


def read(world: World, handle: TaskHandle) -> None:
    with handle.stream() as stream:
        world.seen = list(stream)
    keep(world)


def keep(world: World) -> None:
    world.answers.append([(event.text, event.id) for event in world.seen if isinstance(event, Token)])


@when(parsers.parse("the client asks {times:d} times for {tokens:d} tokens with seed {seed:d}"))
def asks_again(world: World, times: int, tokens: int, seed: int) -> None:
    for _ in range(times):
        read(world, ask(world, tokens, seed))


@when(parsers.parse("the client asks {times:d} times at once for {tokens:d} tokens with seed {seed:d}"))
def asks_at_once(world: World, times: int, tokens: int, seed: int) -> None:
    handles = [ask(world, tokens, seed, rate=200) for _ in range(times)]
    for handle in handles:
        read(world, handle)


@when(parsers.parse("the client asks for {tokens:d} tokens with the seeds {one:d} and {two:d}"))
def asks_with_both(world: World, tokens: int, one: int, two: int) -> None:
    for seed in (one, two):
        read(world, ask(world, tokens, seed))


@when(parsers.parse("the client asks for {tokens:d} tokens without a seed"))
def asks_without(world: World, tokens: int) -> None:
    world.notes["tokens"] = tokens
    read(world, ask(world, tokens, None))


@when("it asks again with the seed that it was told")
def asks_with_the_told_seed(world: World) -> None:
    (seed,) = [event.seed for event in world.seen if isinstance(event, Started)]
    read(world, ask(world, world.notes["tokens"], seed))


@when(
    parsers.parse(
        "the client asks for {tokens:d} tokens with seed {seed:d}, and the server is killed after {some:d} of them"
    )
)
def asks_through_a_kill(world: World, tokens: int, seed: int, some: int) -> None:
    world.notes.update(tokens=tokens, seed=seed)
    ask(world, tokens, seed, rate=100)
    follows_through_a_kill(world, next(reversed(world.tasks)), some)
    keep(world)


@when("it asks again for the same, undisturbed")
def asks_undisturbed(world: World) -> None:
    read(world, ask(world, world.notes["tokens"], world.notes["seed"], rate=100))


@then("all answers are the same, token for token")
def all_the_same(world: World) -> None:
    assert len(world.answers) > 1
    assert len(world.answers[0]) > 1
    assert all(answer == world.answers[0] for answer in world.answers)


@then("the answers differ")
def differ(world: World) -> None:
    one, two = world.answers
    assert one != two
