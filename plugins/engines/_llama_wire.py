"""What a llama.cpp server says of itself, and what follows of it: which workloads and features it has as it was started."""

from __future__ import annotations

from typing import Final

import msgspec


class Slot(msgspec.Struct, gc=False):
    """One of `/slots`."""

    id: int
    is_processing: bool = False
    n_ctx: int = 0


class Modalities(msgspec.Struct, gc=False):
    """What the model takes beside text."""

    vision: bool = False


class TemplateCaps(msgspec.Struct, gc=False):
    """What the chat template can, as llama.cpp found by rendering it."""

    supports_tools: bool = False
    supports_tool_calls: bool = False
    supports_preserve_reasoning: bool = False


class Props(msgspec.Struct, gc=False):
    """What `/props` says, as far as it is of use."""

    total_slots: int = 1
    model_alias: str = ""
    model_path: str = ""
    model_ftype: str = ""
    build_info: str = ""
    chat_template: str = ""
    #: older builds do not tell
    chat_template_caps: TemplateCaps | None = None
    modalities: Modalities | None = None
    bos_token: str = ""
    eos_token: str = ""


class Meta(msgspec.Struct, gc=False, omit_defaults=True):
    """What `/v1/models` says of the weights."""

    vocab_type: int = 0
    n_vocab: int = 0
    n_ctx_train: int = 0
    n_embd: int = 0
    n_params: int = 0
    size: int = 0
    ftype: str = ""


class Model(msgspec.Struct, gc=False):
    """One of `/v1/models`."""

    id: str = ""
    meta: Meta | None = None


class Models(msgspec.Struct, gc=False):
    """All of them."""

    data: list[Model] = []


class Tokens(msgspec.Struct, gc=False):
    """Answer of `/tokenize`."""

    tokens: list[int]


class Content(msgspec.Struct, gc=False):
    """Answer of `/detokenize`."""

    content: str


class Prompt(msgspec.Struct, gc=False):
    """Answer of `/apply-template`."""

    prompt: str


decode_slots: Final = msgspec.json.Decoder(list[Slot], strict=False).decode
decode_props: Final = msgspec.json.Decoder(Props).decode
decode_models: Final = msgspec.json.Decoder(Models).decode
decode_tokens: Final = msgspec.json.Decoder(Tokens).decode
decode_content: Final = msgspec.json.Decoder(Content).decode
decode_prompt: Final = msgspec.json.Decoder(Prompt).decode


class Abilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a server can as it was started."""

    embeds: bool = False
    ranks: bool = False
    tools: bool = False
    #: the model thinks, and llama.cpp tells its thoughts apart
    reasons: bool = False
    #: and can be told not to
    thinking_can_be_off: bool = False
    images: bool = False
    #: length of its embeddings; 0 = it does not say
    dimensions: int = 0

    @property
    def workloads(self) -> tuple[str, ...]:
        """A server that embeds or ranks does only that: what its model would say is nothing it was trained for."""
        if self.ranks:
            return ("rerank",)
        return ("embedding",) if self.embeds else ("completion", "chat")

    @property
    def features(self) -> tuple[str, ...]:
        """Of :data:`~llama_orch.plugins.FEATURES`."""
        if self.embeds or self.ranks:
            return ("tokenize", "detokenize")
        some = {"tools": self.tools, "reasoning": self.reasons, "images": self.images}
        always = (
            *("render", "logprobs", "prompt_ids", "logit_bias", "grammar", "json_schema", "tokenize", "detokenize"),
            *("seed", "continue"),
        )
        return (*always, *(name for name, has in some.items() if has))


def tools_of(props: Props) -> bool:
    """Whether the model's template shows it the tools."""
    caps = props.chat_template_caps
    return "tools" in props.chat_template if caps is None else caps.supports_tools or caps.supports_tool_calls
