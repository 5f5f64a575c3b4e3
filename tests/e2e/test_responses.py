"""A response in the background outlives its server: what a client saw before `kill -9` and what it is sent after it came back
are one stream, numbered without gap or repetition (API-2, STR-2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest

from .conftest import MOCK_POOL, Server

TOOLS: Any = [
    {"type": "function", "name": name, "parameters": {"type": "object", "properties": {"place": {"type": "string"}}}}
    for name in ("weather", "time")
]


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)


@pytest.mark.parametrize(
    "asked, kinds",
    [
        ("say much [[mock tokens=300 rate=100]]", {"message"}),
        ("think, and call [[mock thoughts=40 calls=weather,time rate=60]]", {"reasoning", "function_call"}),
    ],
)
def test_a_response_goes_on_after_its_server_was_killed_and_its_stream_after_any_number(
    new_server: Callable[..., Server], asked: str, kinds: set[str]
) -> None:
    server = new_server({"pools": [MOCK_POOL]}).start()
    seen: list[dict[str, Any]] = []
    with client_of(server) as client:
        stream = client.responses.create(
            model="mock",
            input=asked,
            tools=TOOLS,
            background=True,
            stream=True,
            metadata={"a": "b"},
            extra_body={"seed": 5},
        )
        for event in stream:
            seen.append(event.to_dict())
            if len(seen) == 25:
                break
        server.kill()
        stream.close()
    response_id = str(seen[0]["response"]["id"])
    server.restart()
    with client_of(server) as client:
        again = client.responses.retrieve(response_id, stream=True, starting_after=seen[-1]["sequence_number"])
        seen += [event.to_dict() for event in again]
        assert [event["sequence_number"] for event in seen] == list(range(len(seen)))
        assert seen[-1]["type"] == "response.completed"
        whole = [event.to_dict() for event in client.responses.retrieve(response_id, stream=True)]
        assert seen == whole
        final = client.responses.retrieve(response_id)
        assert final.to_dict() == seen[-1]["response"]
        assert {item.type for item in final.output} == kinds
        assert final.metadata == {"a": "b"}
        assert final.output_text == "".join(e["delta"] for e in seen if e["type"] == "response.output_text.delta")
        client.responses.delete(response_id)
    server.kill()
    server.restart()
    with client_of(server) as client:
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response_id)
