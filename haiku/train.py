# mypy: disable-error-code="misc"
# pyright: reportMissingImports=false
# Both since torch is installed only where one trains: its classes are `Any` to the type checkers.
"""Train the haiku model from scratch on the CPU: `python -m llama_orch.haiku.train --out RUN`.

Writes `RUN/tokenizer.json` and `RUN/model.pt`, which :mod:`.export` turns into the GGUF file that ships. Needs the
`haiku-training` extra (torch, tokenizers, numpy). The seed fixes the texts, their order and the first weights; sums of
floats in another order may still give another model of the same quality on another machine.

The network is llama's, so that any llama.cpp runs it: RMSNorm before each part, grouped-query attention with RoPE,
SwiGLU, and the embedding used again as the output.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from .prompts import Turn, conversation
from .syllables import SYLLABLES

log = logging.getLogger("llama_orch.haiku.train")

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
BOS, _, IM_START, IM_END = range(4)


@dataclass(frozen=True, slots=True)
class Shape:
    """The network's sizes. Row lengths are multiples of 32, as Q8_0 wants them."""

    vocab: int = 2400
    dim: int = 160
    layers: int = 4
    heads: int = 5
    kv_heads: int = 1
    hidden: int = 448
    context: int = 1024
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads


@dataclass(frozen=True, slots=True)
class Recipe:
    """How it is trained."""

    steps: int = 3000
    tokens_per_step: int = 6144
    conversations: int = 270_000
    learning_rate: float = 4e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    seed: int = 575


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learnt scale."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape.dim))
        self._epsilon = shape.norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self._epsilon)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions over the two halves of each head; ggml pairs neighbours instead, which the export reorders."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Layer(nn.Module):
    """Attention, then the gated feed-forward part. Attributes carry the tensor names of GGUF."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self._shape = shape
        kv_dim = shape.kv_heads * shape.head_dim
        self.attn_norm = RMSNorm(shape)
        self.attn_q = nn.Linear(shape.dim, shape.dim, bias=False)
        self.attn_k = nn.Linear(shape.dim, kv_dim, bias=False)
        self.attn_v = nn.Linear(shape.dim, kv_dim, bias=False)
        self.attn_output = nn.Linear(shape.dim, shape.dim, bias=False)
        self.ffn_norm = RMSNorm(shape)
        self.ffn_gate = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.ffn_up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.ffn_down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        """`x`: (batch, length, dim); `mask` is added to the scores. Plain attention is the fast one on a CPU here."""
        batch, length, dim = x.shape
        width, repeats = self._shape.head_dim, self._shape.heads // self._shape.kv_heads
        y = self.attn_norm(x)
        q = rotate(self.attn_q(y).view(batch, length, -1, width).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(y).view(batch, length, -1, width).transpose(1, 2), cos, sin)
        v = self.attn_v(y).view(batch, length, -1, width).transpose(1, 2)
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        weights = ((q * width**-0.5) @ k.transpose(-1, -2) + mask).softmax(dim=-1).to(v.dtype)
        x = x + self.attn_output((weights @ v).transpose(1, 2).reshape(batch, length, dim))
        y = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))


class Network(nn.Module):
    """The whole model; its `state_dict` names are those of a GGUF file without the `.weight` of llama's output."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(shape.vocab, shape.dim)
        self.blk = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.output_norm = RMSNorm(shape)
        steps = torch.arange(0, shape.head_dim, 2) / shape.head_dim
        angles = torch.arange(shape.context)[:, None] / shape.rope_base ** steps[None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, weights in self.named_parameters():
            if weights.dim() == 2:
                into_the_stream = "output" in name or "down" in name
                spread = 0.02 if "embd" in name else weights.shape[1] ** -0.5 * (0.5 if into_the_stream else 1.0)
                nn.init.normal_(weights, std=spread)

    def forward(self, ids: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Scores of the next token, at the positions `wanted` (a mask like `ids`) or at all."""
        length = ids.shape[1]
        x = self.token_embd(ids)
        mask = torch.full((length, length), -1e9).triu(1)
        for layer in self.blk:
            x = layer(x, self.cos[:length], self.sin[:length], mask)
        x = self.output_norm(x)
        if wanted is not None:
            x = x[wanted]
        return F.linear(x, self.token_embd.weight)


def train_tokenizer(conversations: Iterable[list[Turn]], vocab: int) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer that llama.cpp calls `gpt-2`.

    The words of the grammar, and those that begin a line, are fed so often that each becomes one token: a model that
    sees words whole learns their syllables by heart, and need not spell.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"{turn.role}\n{turn.text}" for turns in conversations for turn in turns]
    first = {line.split()[0] for text in texts if text.startswith("assistant") for line in text.split("\n")[1:]}
    texts += [text for word in sorted(first | {f" {word}" for word in SYLLABLES}) for text in [word] * 1000]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Encoder:
    """Turns conversations into token ids exactly as llama.cpp does after the chat template (see :mod:`.export`)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._newline = self.text("\n")

    def text(self, text: str) -> list[int]:
        """Ids of a piece that holds no special token."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def conversation(self, turns: list[Turn]) -> tuple[list[int], list[bool]]:
        """Ids, and which of them the model has to predict: the answers and the ends of answers."""
        ids, learnt = [BOS], [False]

        def put(piece: list[int], *, learn: bool = False) -> None:
            ids.extend(piece)
            learnt.extend([learn] * len(piece))

        if turns[0].role == "raw":
            prompt, answer = turns[0].text, turns[1].text
            put(self.text(prompt))
            put(self.text(answer if prompt.endswith("\n") else f"\n{answer}"), learn=True)
            put([IM_END], learn=True)
            return ids, learnt
        for turn in turns:
            if len(ids) > 1:
                put(self._newline)
            put([IM_START])
            head = self.text(f"{turn.role}\n")
            whole = self.text(f"{turn.role}\n{turn.text.strip()}")
            learn = turn.role == "assistant"
            put(head)
            put(whole[len(head) :], learn=learn)
            put([IM_END], learn=learn)
        return ids, learnt


def training_batches(encoder: Encoder, recipe: Recipe, rng: Random, context: int) -> list[tuple[Tensor, Tensor]]:
    """Padded batches of conversations of like length: ids and the mask of what is learnt."""
    rows = []
    for _ in range(recipe.conversations):
        encoded, predicted = encoder.conversation(conversation(rng))
        if len(encoded) <= context:
            rows.append((np.array(encoded, np.int16), np.array(predicted, np.bool_)))
    rows.sort(key=lambda row: (len(row[0]) // 8, rng.random()))
    groups: list[list[tuple[np.ndarray, np.ndarray]]] = [[]]
    for row in rows:
        if groups[-1] and len(row[0]) * (len(groups[-1]) + 1) > recipe.tokens_per_step:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    batches = []
    for group in groups:
        width = max(len(ids) for ids, _ in group)
        padded = np.zeros((len(group), width), np.int16)
        wanted = np.zeros((len(group), width), np.bool_)
        for i, (ids, learnt) in enumerate(group):
            padded[i, : len(ids)], wanted[i, : len(ids)] = ids, learnt
        batches.append((torch.from_numpy(padded), torch.from_numpy(wanted)))
    return batches


def optimizers(network: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the scales."""
    matrices = [p for p in network.blk.parameters() if p.dim() == 2]
    scales = [p for p in network.parameters() if p.dim() != 2]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    others = [{"params": [network.token_embd.weight], "weight_decay": decay}, {"params": scales, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98)),
    ]


def learning_rates(recipe: Recipe) -> Iterator[float]:
    """The rate of each step: up over the warm-up, then straight down to a hundredth."""
    for step in range(recipe.steps):
        up = min(1.0, (step + 1) / recipe.warmup_steps)
        yield recipe.learning_rate * up * max(0.01, 1.0 - step / recipe.steps)


def train(network: Network, batches: list[tuple[Tensor, Tensor]], recipe: Recipe, run: Path, shape: Shape) -> float:
    """Train in place and write `run/model.pt` every 200 steps and at the end; the smoothed loss of the last step."""
    compiled = torch.compile(network, dynamic=True)
    optims = optimizers(network, recipe)
    started, smoothed, seen = time.monotonic(), float("nan"), 0
    for step, rate in enumerate(learning_rates(recipe), 1):
        ids, learnt = batches[step % len(batches)]
        ids = ids.long()
        wanted = learnt[:, 1:]
        with torch.autocast("cpu", torch.bfloat16):
            scores = compiled(ids[:, :-1], wanted)
        loss = F.cross_entropy(scores.float(), ids[:, 1:][wanted])
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = rate
            optim.step()
            optim.zero_grad()
        seen += ids.numel()
        smoothed = loss.item() if step == 1 else 0.98 * smoothed + 0.02 * loss.item()
        if step % 50 == 0:
            spent = time.monotonic() - started
            log.info("step %d loss %.4f, %.0f tokens/s, %.0f s", step, smoothed, seen / spent, spent)
        if step % 200 == 0 or step == recipe.steps:
            torch.save({"shape": dataclasses.asdict(shape), "state": network.state_dict()}, run / "model.pt")
    return smoothed


def parser() -> argparse.ArgumentParser:
    """The command line: where to write, and every field of :class:`Shape` and :class:`Recipe`."""
    made = argparse.ArgumentParser(
        prog="python -m llama_orch.haiku.train", description="Train the haiku model from scratch."
    )
    made.add_argument("--out", type=Path, required=True, help="directory of the run")
    made.add_argument("--threads", type=int, default=2)
    for kind in (Shape, Recipe):
        for field in dataclasses.fields(kind):
            flag = f"--{field.name.replace('_', '-')}"
            made.add_argument(flag, type=type(field.default), default=field.default, help=f"default {field.default}")
    return made


def main() -> None:
    """Train as the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = vars(parser().parse_args())
    shape = Shape(**{field.name: given[field.name] for field in dataclasses.fields(Shape)})
    recipe = Recipe(**{field.name: given[field.name] for field in dataclasses.fields(Recipe)})
    run: Path = given["out"]
    run.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given["threads"])
    torch.manual_seed(recipe.seed)
    rng = Random(recipe.seed)

    tokenizer = train_tokenizer((conversation(rng) for _ in range(20_000)), shape.vocab)
    tokenizer.save(str(run / "tokenizer.json"))
    encoder = Encoder(tokenizer)
    whole = sum(len(encoder.text(f" {word}")) == 1 for word in SYLLABLES)
    log.info("tokenizer: %d of %d words are one token", whole, len(SYLLABLES))
    batches = training_batches(encoder, recipe, rng, shape.context)
    network = Network(shape)
    log.info("%d parameters, %d batches", sum(p.numel() for p in network.parameters()), len(batches))
    loss = train(network, batches, recipe, run, shape)
    summary = {"shape": dataclasses.asdict(shape), "recipe": dataclasses.asdict(recipe), "loss": round(loss, 4)}
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
