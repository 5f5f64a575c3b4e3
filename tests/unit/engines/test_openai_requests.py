"""What the client of OpenAI's API asks servers of each dialect for."""

import pytest

from llama_orch.plugins import ChatJob
from llama_orch.plugins.engines._openai_dialects import SPECIAL_TOKENS, UNBOUNDED_TOKENS

from .openai_stage import CHAT, JOB, MESSAGES, asked, changed, opened, outcome, run


def test_a_completion_as_openai_writes_it():
    async def test():
        sampling = {"temperature": 0.5, "top_p": 0.9}
        _, (path, body) = await asked(changed(JOB, prefix=" world", sampling=sampling, stop=("x",), logprobs=True))
        assert path == "/v1/completions"
        assert body == {
            "model": "made-up",
            "prompt": "hello world",
            "max_tokens": 4,
            "seed": 5,
            "stop": ["x"],
            "logprobs": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            **sampling,
        }

    run(test)


def test_a_completion_for_llamacpp():
    async def test():
        sampling = {"top_k": 40.0, "min_p": 0.05, "repeat_penalty": 1.1}
        job = changed(JOB, seed=2**32 - 1, sampling=sampling, json_schema={"type": "boolean"}, cache_prompt=True)
        _, (_, body) = await asked(job, dialect="llamacpp")
        assert body["top_k"] == 40
        assert isinstance(body["top_k"], int)
        assert (body["min_p"], body["repeat_penalty"]) == (0.05, 1.1)
        assert (body["seed"], body["cache_prompt"], body["timings_per_token"]) == (2**32 - 2, True, True)
        assert "true" in body["grammar"]
        assert "json_schema" not in body

    run(test)


def test_a_chat_with_everything():
    async def test():
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        chat = ChatJob(
            messages=MESSAGES,
            tools=[tool],
            tool_choice="auto",
            parallel_tool_calls=False,
            reasoning_effort="none",
            template_kwargs={"a": 1},
        )
        job = changed(CHAT, chat=chat, max_tokens=9, logprobs=True, top_logprobs=3, json_schema={"type": "object"})
        config = {"dialect": "vllm", "max_tokens_field": "max_completion_tokens"}
        _, (path, body) = await asked(job, **config)
        assert path == "/v1/chat/completions"
        assert (body["messages"], body["tools"], body["tool_choice"]) == (MESSAGES, [tool], "auto")
        assert (body["parallel_tool_calls"], body["reasoning_effort"]) == (False, "none")
        assert body["chat_template_kwargs"] == {"a": 1, "enable_thinking": False}
        assert (body["max_completion_tokens"], "max_tokens" in body) == (9, False)
        assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
        assert body["structured_outputs"] == {"json": {"type": "object"}}

    run(test)


def test_a_schema_of_a_chat_as_openai_writes_it():
    async def test():
        _, (_, body) = await asked(changed(CHAT, json_schema={"type": "object"}))
        schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
        assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
        assert "max_tokens" not in body

    run(test)


def test_a_completion_without_a_bound_says_so_since_leaving_it_out_means_sixteen_tokens():
    async def test():
        _, (_, body) = await asked(changed(JOB, max_tokens=0))
        assert body["max_tokens"] == 4096 - len("hello") - SPECIAL_TOKENS  # of the context that the server tells
        _, (_, body) = await asked(changed(JOB, max_tokens=0, prompt="word " * 1000))
        assert body["max_tokens"] == 1024
        _, (_, body) = await asked(changed(JOB, max_tokens=0), dialect="llamacpp")
        assert body["max_tokens"] == 4096
        _, (_, body) = await asked(changed(JOB, max_tokens=0), served_model="theirs")
        assert body["max_tokens"] == UNBOUNDED_TOKENS

    run(test)


@pytest.mark.parametrize("native", [True, False])
def test_several_answers_in_one_request_or_one_after_another(native):
    async def test():
        async with opened(native_n=native) as (engine, server):
            result, sink, _ = await outcome(engine, changed(JOB, n=3))
            assert (result.finish_reasons, result.tokens) == (("length",) * 3, 12)
            assert sorted({entry.choice for entry in sink.all}) == [0, 1, 2]
            seeds = [(body["seed"], body.get("n", 1)) for _, body in server.asked]
            assert seeds == ([(5, 3)] if native else [(5, 1), (6, 1), (7, 1)])

    run(test)


def test_a_server_that_does_not_know_seeds_is_sent_none():
    async def test():
        _, (_, body) = await asked(JOB, features=[])
        assert "seed" not in body

    run(test)


@pytest.mark.parametrize("dialect", ["openai", "vllm", "llamacpp"])
def test_a_function_that_has_to_be_called_is_named_or_sent_alone(dialect):
    async def test():
        tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in "fg"]
        choice = {"type": "function", "function": {"name": "g"}}
        chat = ChatJob(messages=MESSAGES, tools=tools, tool_choice=choice)
        _, (_, body) = await asked(changed(CHAT, chat=chat), dialect=dialect)
        alone = dialect == "llamacpp"
        assert body["tools"] == (tools[1:] if alone else tools)
        assert body["tool_choice"] == ("required" if alone else choice)

    run(test)


def test_a_function_that_is_none_of_the_request_cannot_be_named():
    async def test():
        tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
        choice = {"type": "function", "function": {"name": "g"}}
        chat = ChatJob(messages=MESSAGES, tools=[tool], tool_choice=choice)
        async with opened(dialect="llamacpp") as (engine, server):
            result, *_ = await outcome(engine, changed(CHAT, chat=chat))
            assert (result.kind, result.retriable) == ("invalid", False)
            assert "tool_choice" in result.message
            assert server.asked == []

    run(test)


@pytest.mark.parametrize("part", ["http://127.0.0.1:8080/v1/keys", {"url": "file:///etc/passwd"}, {}, None])
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_a_picture_that_the_server_would_have_to_fetch_is_refused(kind, part):
    async def test():
        chat = ChatJob(messages=[{"role": "user", "content": [{"type": kind, kind: part}]}])
        async with opened(features=["images"]) as (engine, server):
            result, *_ = await outcome(engine, changed(CHAT, chat=chat))
            assert (result.kind, result.retriable) == ("invalid", False)
            assert "data:" in result.message
            assert server.asked == []

    run(test)


def test_a_picture_that_comes_with_the_request_is_sent_as_it_is():
    async def test():
        parts = [
            {"type": "text", "text": "what?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        ]
        chat = ChatJob(messages=[{"role": "user", "content": parts}])
        _, (_, body) = await asked(changed(CHAT, chat=chat), features=["images"])
        assert body["messages"][0]["content"] == parts

    run(test)
