"""Train the prior of the ``learned`` estimator: ``python tools/train_prior.py LENGTHS.jsonl [-o FILE]``.

LENGTHS has a line per prompt: ``prompt`` and ``output_tokens``, an object with the tokens that each of
several models generated. The prior is a ridge regression of the log length, relative to each model's mean and
averaged over the models, on the features of ``scheduler.core.features``.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from scheduler.load.prior import PRIOR_FILE, read_lengths, train


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("lengths", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=PRIOR_FILE)
    parser.add_argument("--shuffle", action="store_true", help="shuffled labels: a prior that knows nothing")
    options = parser.parse_args()
    prompts, lengths = read_lengths(options.lengths)
    if options.shuffle:
        random.Random(0).shuffle(lengths)
    document = train(prompts, lengths)
    options.output.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{len(prompts)} prompts, {len(lengths[0])} models -> {options.output}")


if __name__ == "__main__":
    main()
