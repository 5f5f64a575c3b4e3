"""The mock's vocabulary, and what follows from it: tokens of a text, likelihoods, embeddings, scores. All by arithmetic."""

from __future__ import annotations

import array
import hashlib
import math
import re
import sys
import zlib
from collections.abc import Sequence
from typing import Final

from .. import TokenLogprob

_PIECES: Final = re.compile(r"\s*\w+|\s*[^\w\s]|\s+")
_SYLLABLES: Final = ("ba", "ke", "li", "mo", "nu", "ra", "so", "ti")
#: the vocabulary of ``text=words``: 64 words with their space in front
WORDS: Final = tuple(f" {a}{b}" for a in _SYLLABLES for b in _SYLLABLES)
FIRST_WORD_ID: Final = 259
#: of ``text=utf8``: two, three and four bytes, one token each byte
WIDE: Final = ("é", "ß", "€", "中", "文", "🙂", "𝄞", " a")
BOS_ID: Final = 1
BYTE_ID: Final = 3
WORD_IDS: Final = {word: FIRST_WORD_ID + n for n, word in enumerate(WORDS)}
_HASHED: Final = 1000
_HASHES: Final = 30_000
#: length of an embedding, unless somebody asks for another
DIMENSIONS: Final = 32
#: pieces that were tokenized, so that their ids can be told apart again; there are no more ids than that
_seen: dict[int, str] = {}


def tokenize(text: str, *, add_special: bool) -> list[int]:
    """Token ids of a text, by a vocabulary that never ends."""
    ids = [BOS_ID] if add_special else []
    for piece in _PIECES.findall(text):
        if piece in WORD_IDS:
            ids.append(WORD_IDS[piece])
        else:
            token = _HASHED + zlib.crc32(piece.encode("utf-8", "replace")) % _HASHES
            _seen[token] = piece
            ids.append(token)
    return ids


def detokenize(ids: Sequence[int]) -> str:
    """The text of token ids.

    Raises:
        KeyError: an id that stands for nothing yet.
    """
    return "".join(_text(token) for token in ids)


def _text(token: int) -> str:
    if token == BOS_ID:
        return ""
    if 0 <= token - FIRST_WORD_ID < len(WORDS):
        return WORDS[token - FIRST_WORD_ID]
    return _seen[token]


def likelihood(text: str, token: int, top: int) -> TokenLogprob:
    """How likely the mock says that a token was, and the likeliest in its place.

    Args:
        text: what was said.
        token: its last token's id.
        top: how many others to tell.
    """
    others = [TokenLogprob(word, repr(-1.0 - n), word.encode()) for n, word in enumerate(WORDS[:top])]
    return TokenLogprob(text, repr(-0.5 - token % 8 / 8), text.encode(), others)


def embedding(text: str, dimensions: int = 0) -> bytes:
    """A vector of length one, little-endian float32, which nothing but the text decides."""
    length = dimensions or DIMENSIONS
    noise = hashlib.shake_256(text.encode("utf-8", "replace")).digest(length)
    numbers = [byte - 127.5 for byte in noise]
    norm = math.sqrt(sum(number * number for number in numbers))
    vector = array.array("f", [number / norm for number in numbers])
    if sys.byteorder == "big":
        vector.byteswap()
    return vector.tobytes()


def score(query: str, text: str) -> float:
    """How many of a query's words a text has, and a little by chance, so that no two texts rank the same."""
    wanted = set(query.lower().split())
    found = wanted & set(text.lower().split())
    chance = zlib.crc32(f"{query}\0{text}".encode("utf-8", "replace")) % 1000 / 10_000
    return len(found) / max(len(wanted), 1) + chance
