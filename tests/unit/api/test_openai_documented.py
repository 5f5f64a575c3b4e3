"""The reference of the OpenAI-compatible API names every parameter and header that the code knows."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from llama_orch.api.compat.chat_request import ChatCompletionRequest
from llama_orch.api.compat.completion_request import PROMPTS, CompletionRequest
from llama_orch.api.compat.openai_chat import ANSWER_HEADERS, REQUEST_HEADERS
from llama_orch.api.compat.openai_embeddings import INPUTS, EmbeddingRequest
from llama_orch.api.compat.rerank import DOCUMENTS, RerankRequest
from llama_orch.api.compat.tokens import PIECES, ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest
from llama_orch.api.conversations import CONVERSATION_HEADERS
from llama_orch.api.problems import OPENAI_TYPES

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "openai.md").read_text()


def section(title: str) -> str:
    found = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert found, f"no section {title}"
    return found


def first_cells(text: str) -> set[str]:
    """Names in the first column of a section's tables."""
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize(
    "title, kinds",
    [
        ("Chats", [ChatCompletionRequest]),
        ("Texts", [CompletionRequest]),
        ("Embeddings", [EmbeddingRequest]),
        ("Ranking", [RerankRequest]),
        ("Tokens", [TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest]),
    ],
)
def test_every_parameter_stands_in_the_section_of_its_route(title: str, kinds: list[type[msgspec.Struct]]) -> None:
    known = {field.encode_name for kind in kinds for field in msgspec.structs.fields(kind)}
    assert first_cells(section(title)) == known


def test_every_header_that_is_read_or_sent_is_told() -> None:
    asked = first_cells(section("Headers of requests"))
    assert {*REQUEST_HEADERS, *CONVERSATION_HEADERS} <= asked
    assert set(ANSWER_HEADERS) <= first_cells(section("Headers of answers"))


@pytest.mark.parametrize(
    "title, bound", [("Texts", PROMPTS), ("Embeddings", INPUTS), ("Ranking", DOCUMENTS), ("Tokens", PIECES)]
)
def test_bounds_are_those_of_the_code(title: str, bound: int) -> None:
    assert f"{bound:,} " in section(title)


def test_types_of_errors_are_those_of_the_code() -> None:
    told: dict[int, str] = {}
    for statuses, kind in re.findall(r"^\| ([\d, ]+) \| `(\w+)` \|$", section("Errors"), re.MULTILINE):
        told |= {int(status): kind for status in statuses.split(",")}
    assert told == {**OPENAI_TYPES, 500: "server_error"}
