"""Keys, asked for and refused in each compatible API's own words; what is somebody else's is not there (AUTH-1, API-2)."""

from __future__ import annotations

from collections.abc import Iterator

import anthropic
import httpx
import openai
import pytest

from llama_orch.core.services.caller import Caller
from llama_orch.core.services.keys import KeySpec

from .live_server import LiveServer, mock_settings

MESSAGES: list[anthropic.types.MessageParam] = [{"role": "user", "content": "x"}]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("live"), mock_settings())
    yield server.start()
    server.stop()


@pytest.fixture(scope="module")
def keys(live: LiveServer) -> dict[str, str]:
    def made(spec: KeySpec) -> str:
        return live.run(live.services.keys.create(spec, Caller(), "c"))[1]

    return {
        "one": made(KeySpec(name="one")),
        "two": made(KeySpec(name="two")),
        "reader": made(KeySpec(name="reader", scopes=["read"])),
        "other-model": made(KeySpec(name="other-model", models=["something-else"])),
    }


def claude(live: LiveServer, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=live.url, api_key=key, max_retries=0)


def gpt(live: LiveServer, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key=key, max_retries=0)


def test_anthropics_key_header_and_a_bearer_are_the_same(live: LiveServer, keys: dict[str, str]) -> None:
    with claude(live, keys["one"]) as client:
        assert client.messages.create(model="mock", max_tokens=3, messages=MESSAGES).content
    bearer = anthropic.Anthropic(base_url=live.url, auth_token=keys["one"], max_retries=0)
    with bearer as client:
        assert client.messages.count_tokens(model="mock", messages=MESSAGES).input_tokens


@pytest.mark.parametrize(
    "key, kind, code",
    [
        ("lo_wrong", "authentication_error", "BAD_TOKEN"),
        ("reader", "permission_error", "FORBIDDEN"),
        ("other-model", "permission_error", "FORBIDDEN"),
    ],
)
def test_a_key_that_does_not_do_is_refused_in_anthropics_words(
    live: LiveServer, keys: dict[str, str], key: str, kind: str, code: str
) -> None:
    with claude(live, keys.get(key, key)) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            client.messages.create(model="mock", max_tokens=3, messages=MESSAGES)
    assert isinstance(caught.value.body, dict)
    error = caught.value.body["error"]
    assert (error["type"], error["code"]) == (kind, code)
    assert error["remedy"]
    assert caught.value.status_code == (401 if code == "BAD_TOKEN" else 403)


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/completions", {"prompt": [5, 6], "echo": True}),
        ("/v1/embeddings", {"input": [5, 6]}),
        ("/detokenize", {"tokens": [5, 6]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "model": "no-such-model"}),
    ],
)
def test_a_model_that_a_key_is_not_for_is_asked_nothing_by_it(
    live: LiveServer, keys: dict[str, str], path: str, body: dict[str, object]
) -> None:
    headers = {"Authorization": f"Bearer {keys['other-model']}"}
    answer = httpx.post(live.url + path, json={"model": "mock", **body}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "FORBIDDEN"), answer.text
    assert (answer.json()["error"].get("param") or answer.json()["error"].get("field")) == "model"


def test_the_model_that_is_not_named_is_the_one_that_the_key_is_for(live: LiveServer, keys: dict[str, str]) -> None:
    def asked(key: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {keys[key]}"}
        return httpx.post(f"{live.url}/tokenize", json={"content": "x"}, headers=headers)

    assert asked("one").json()["count"]
    refused = asked("other-model")
    assert refused.status_code == 400
    assert "mock" not in refused.text


@pytest.mark.parametrize("path, field", [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_a_wrong_token_id_is_told_by_the_parameter_that_it_stands_in(
    live: LiveServer, keys: dict[str, str], path: str, field: str
) -> None:
    headers = {"Authorization": f"Bearer {keys['one']}"}
    answer = httpx.post(live.url + path, json={"model": "mock", field: [5, 6], "echo": True}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_a_missing_key_is_asked_for_in_the_words_of_each_route(live: LiveServer, keys: dict[str, str]) -> None:
    assert keys
    with httpx.Client(base_url=live.url) as http:
        said = http.post("/v1/messages", json={}).json()
        assert (said["type"], said["error"]["type"]) == ("error", "authentication_error")
        for path in ("/v1/responses", f"/v1/responses/resp_{'0' * 32}", f"/v1/responses/resp_{'0' * 32}/input_items"):
            answer = http.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "MISSING_TOKEN"


def test_another_keys_response_is_not_there(live: LiveServer, keys: dict[str, str]) -> None:
    with gpt(live, keys["one"]) as mine, gpt(live, keys["two"]) as theirs:
        response_id = mine.responses.create(model="mock", input="x").id
        assert mine.responses.retrieve(response_id).status == "completed"
        for look in (
            theirs.responses.retrieve,
            theirs.responses.cancel,
            theirs.responses.delete,
            theirs.responses.input_items.list,
        ):
            with pytest.raises(openai.NotFoundError):
                look(response_id)
        with pytest.raises(openai.NotFoundError):
            list(theirs.responses.retrieve(response_id, stream=True))
        with pytest.raises(openai.NotFoundError):
            theirs.responses.create(model="mock", input="y", previous_response_id=response_id)
        assert mine.responses.retrieve(response_id).status == "completed"
