"""A model of random weights, held by a JSON schema on real llama.cpp, says only what the schema allows."""

import asyncio
import json

import jsonschema_rs
import pytest

from llama_orch.plugins import GenerateJob
from llama_orch.plugins.engines.llamacpp import LlamaCpp
from llama_orch.plugins.testing.engines import Recorder

from ...engines.real_llama import llama_server
from ...engines.tiny_gguf import write_model

pytestmark = [pytest.mark.real_llama, pytest.mark.slow]

WORD = {"type": "string", "maxLength": 4}
SCHEMAS = {
    "boolean": {"type": "boolean"},
    "text in quotes and backslashes": {"enum": ['say "no"', "back\\slash", "é中🙂", "new\nline"]},
    "object": {
        "type": "object",
        "properties": {
            "name": WORD,
            "age": {"type": "integer", "minimum": 0},
            "grade": {"type": "integer", "minimum": -1, "maximum": 1},
            "tags": {"type": "array", "items": WORD, "maxItems": 3},
            "next": {"anyOf": [WORD, {"type": "null"}]},
        },
        "required": ["age", "tags"],
        "additionalProperties": False,
    },
    "optional all": {"properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}, "additionalProperties": False},
    "pairs": {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 2, "items": False},
    "bounded list": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 4},
    "list of trees": {
        "$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "boolean"}}, "required": ["v"]}},
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "minItems": 1,
        "maxItems": 2,
    },
    "required beside the properties": {"properties": {"a": {"type": "null"}}, "required": ["b"], "additionalProperties": {"type": "null"}, "maxLength": 9},
}  # fmt: skip


def test_every_answer_is_valid_against_its_schema(tmp_path):
    async def answers(url):
        engine = LlamaCpp({"url": url})
        said = {}
        for name, schema in SCHEMAS.items():
            for seed in range(8):
                sink = Recorder()
                job = GenerateJob(
                    task_id="t",
                    attempt=1,
                    prompt="Once",
                    seed=seed,
                    sampling={"temperature": 1.5},
                    max_tokens=600,
                    json_schema=schema,
                )
                engine.generate(job, sink)
                end = await sink.end()
                said[name, seed] = (end.finish_reason, sink.text)
        await engine.close()
        return said

    with llama_server(write_model(tmp_path / "plain.gguf")) as url:
        said = asyncio.run(answers(url))
    finished = 0
    for (name, seed), (reason, text) in said.items():
        if reason == "length":
            continue  # a random model may pad with spaces until its tokens are used up
        finished += 1
        validator = jsonschema_rs.validator_for(SCHEMAS[name])
        assert validator.is_valid(json.loads(text)), (name, seed, text)
    assert finished >= len(said) * 3 // 4
    assert len({text for (name, _), (_, text) in said.items() if name == "object"}) > 1
