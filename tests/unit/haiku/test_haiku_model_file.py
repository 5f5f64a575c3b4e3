from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader

from llama_orch import haiku


@pytest.fixture(scope="module")
def reader() -> GGUFReader:
    return GGUFReader(haiku.model_path())


def value(reader: GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_the_file_is_at_most_three_megabytes() -> None:
    assert haiku.model_path().stat().st_size <= 3_000_000


def test_it_is_a_llama_that_ends_its_answers_and_starts_with_bos(reader: GGUFReader) -> None:
    assert value(reader, "general.architecture") == "llama"
    assert value(reader, "general.name") == haiku.MODEL_NAME
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert isinstance(tokens, list)
    assert tokens[int(str(value(reader, "tokenizer.ggml.eos_token_id")))] == "<|im_end|>"
    assert tokens[int(str(value(reader, "tokenizer.ggml.bos_token_id")))] == "<s>"
    assert value(reader, "tokenizer.ggml.add_bos_token") is True


def test_its_context_is_what_the_package_says(reader: GGUFReader) -> None:
    assert value(reader, "llama.context_length") == haiku.CONTEXT_TOKENS


def test_its_chat_template_is_chatml_with_any_role(reader: GGUFReader) -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    template = ImmutableSandboxedEnvironment().from_string(str(value(reader, "tokenizer.chat_template")))
    said = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " rain\n"}]
    assert template.render(messages=said, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nrain<|im_end|>\n<|im_start|>assistant\n"
    )


def test_its_output_is_its_embedding_and_its_matrices_are_q8_0(reader: GGUFReader) -> None:
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in kinds
    assert {kind for name, kind in kinds.items() if "norm" not in name} == {"Q8_0"}
    assert {kind for name, kind in kinds.items() if "norm" in name} == {"F32"}


def test_its_words_are_whole_tokens(reader: GGUFReader) -> None:
    tokens = value(reader, "tokenizer.ggml.tokens")
    assert isinstance(tokens, list)
    assert {"Ġrain", "Ġumbrella", "Ġvanishes"} <= set(tokens)


def test_the_topics_are_listed_by_name() -> None:
    assert {"rain", "snow", "cherry blossom", "robot"} <= set(haiku.topics())


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="reinstall llama-orch"):
        haiku.model_path(tmp_path)


def test_importing_the_package_needs_nothing_that_only_training_needs() -> None:
    code = (
        "import sys; import llama_orch.haiku, llama_orch.haiku.judge, llama_orch.haiku.measure, llama_orch.haiku.prompts;"
        "print([m for m in ('torch', 'numpy', 'gguf', 'tokenizers', 'xllamacpp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
