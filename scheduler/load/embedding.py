"""all-MiniLM-L6-v2 on numpy: the sentence embedding behind ``learned`` with embeddings.

A BERT encoder, the mean over its tokens, brought to length 1 (Wang et al. 2020; Reimers and Gurevych 2019).
Some milliseconds for a prompt on one core, and no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scheduler.core.features import MAX_CHARS
from scheduler.core.prior import Embed
from scheduler.load.fields import EMBEDDING_FILES

REPOSITORY = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256
EPSILON = 1e-12

Array = NDArray[np.float32]


class EmbeddingError(ValueError):
    """The embedding model cannot be had; says what to do."""


@cache
def embedding_model(where: str) -> Embed:
    """``where``: "minilm", taken from the Hugging Face hub or its cache, or a folder with its files.
    90 MB are read the first time. Raises EmbeddingError.
    """
    try:
        from huggingface_hub import snapshot_download
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise EmbeddingError(
            f"embeddings need pip install '.[embeddings]' in DriftSched's source folder: {error}"
        ) from None
    try:
        folder = Path(
            where
            if where != "minilm"
            else snapshot_download(REPOSITORY, allow_patterns=list(EMBEDDING_FILES))
        )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # each of the three libraries has errors of its own
        files = ", ".join(EMBEDDING_FILES)
        raise EmbeddingError(
            f"no embedding model at {where!r:.200} (a folder with {files}): {error}"
        ) from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    encoder = Encoder(weights, config)
    return lambda prompt: encoder(tokenizer.encode(prompt[:MAX_CHARS]).ids)


class Encoder:
    """Token numbers -> embedding."""

    def __init__(self, weights: Mapping[str, Array], config: Mapping[str, Any]) -> None:
        self._weights = weights
        self._layers: int = config["num_hidden_layers"]
        self._heads: int = config["num_attention_heads"]

    def __call__(self, tokens: list[int]) -> list[float]:
        embedding = self._weights
        x: Array = (
            embedding["embeddings.word_embeddings.weight"][tokens]
            + embedding["embeddings.position_embeddings.weight"][: len(tokens)]
            + embedding["embeddings.token_type_embeddings.weight"][0]
        )
        x = self._norm(x, "embeddings.LayerNorm")
        for number in range(self._layers):
            layer = f"encoder.layer.{number}"
            attended = self._linear(
                self._attend(x, f"{layer}.attention.self"), f"{layer}.attention.output.dense"
            )
            x = self._norm(x + attended, f"{layer}.attention.output.LayerNorm")
            inner = _gelu(self._linear(x, f"{layer}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        mean = x.mean(axis=0)
        return [float(value) for value in mean / np.linalg.norm(mean)]

    def _linear(self, x: Array, name: str) -> Array:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: Array, name: str) -> Array:
        centred = x - x.mean(axis=1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + EPSILON)
        result: Array = unit * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return result

    def _attend(self, x: Array, name: str) -> Array:
        tokens, width = x.shape
        query, key, value = (
            self._linear(x, f"{name}.{part}").reshape(tokens, self._heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / np.sqrt(width / self._heads, dtype=np.float32)
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        attended: Array = (shares @ value).swapaxes(0, 1).reshape(tokens, width)
        return attended


def _gelu(x: Array) -> Array:
    """By the tanh approximation: numpy has no error function."""
    result: Array = 0.5 * x * (1 + np.tanh(np.float32(0.7978845608) * (x + np.float32(0.044715) * x * x * x)))
    return result
