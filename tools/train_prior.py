"""Train the priors of the ``learned`` estimator: ``python tools/train_prior.py LENGTHS.jsonl``.

LENGTHS has a line per prompt: ``prompt`` and ``output_tokens``, an object with the tokens that each of
several models generated. The prior is a ridge regression of the log length, relative to each model's mean and
averaged over the models, on the features of ``scheduler.core.features``, with ``--embeddings`` on those of
all-MiniLM-L6-v2, too. Models that are to be scored are left out: ``--leave-out Qwen1.5-1.8B-Chat``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

from scheduler.load.embedding import embedding_model
from scheduler.load.prior import MINILM_PRIOR_FILE, PRIOR_FILE
from scheduler.load.training import read_corpus, train
from scheduler.load.yamlfile import did_you_mean


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lengths", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="default: the file that ships")
    parser.add_argument("--leave-out", action="append", default=[], metavar="MODEL")
    parser.add_argument(
        "--embeddings", metavar="minilm|FOLDER", help="train the prior with an embedding model"
    )
    parser.add_argument("--shuffle", action="store_true", help="shuffled labels: a prior that knows nothing")
    options = parser.parse_args(argv)
    try:
        data = read_corpus(options.lengths)
        embed = embedding_model(options.embeddings) if options.embeddings else None
    except ValueError as error:
        parser.error(str(error))
    for name in options.leave_out:
        if name not in data.tokens:
            parser.error(f"--leave-out {name}: not in the file; {did_you_mean(name, data.tokens)}")
    models = [name for name in data.tokens if name not in options.leave_out]
    if not models:
        parser.error("nothing is left to learn from")
    lengths = data.of(models)
    if options.shuffle:
        random.Random(0).shuffle(lengths)
    document = train(data.prompts, lengths, embed)
    output = options.output or (MINILM_PRIOR_FILE if embed else PRIOR_FILE)
    output.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(lengths)} prompts, {len(models)} models -> {output}")


if __name__ == "__main__":
    main()
