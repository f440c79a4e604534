"""The shipped prior of the ``learned`` estimator."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from zlib import crc32

from scheduler.core.prior import Prior

DATA = Path(__file__).parent.parent / "data"
PRIOR_FILE, MINILM_PRIOR_FILE = DATA / "prior.json", DATA / "prior-minilm.json"


@cache
def shipped_prior(embeddings: bool = False) -> Prior:
    """``embeddings``: the one for all-MiniLM-L6-v2. Raises ValueError when the features were changed without
    training anew.
    """
    file = MINILM_PRIOR_FILE if embeddings else PRIOR_FILE
    return Prior.from_document(json.loads(file.read_text(encoding="utf-8")))


@cache
def trained_on() -> frozenset[int]:
    """Keys of the prompts that the shipped prior has seen."""
    return frozenset(json.loads(PRIOR_FILE.read_text(encoding="utf-8"))["prompts"])


def prompt_key(prompt: str) -> int:
    """Tells prompts apart without keeping them."""
    return crc32(prompt.encode())
