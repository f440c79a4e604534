"""The named estimators."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.core.estimate import Counter, Estimator, Oracle, PaperEstimator, count_words
from scheduler.core.learned import LearnedEstimator
from scheduler.core.prior import NO_PRIOR, Embed, Prior
from scheduler.core.tenant_estimate import TenantEstimator

ESTIMATORS: Mapping[str, str] = {
    "paper": "keyword category x learned bias (EMA per category)",
    "tenant": "keyword category x what the tenant's answers were lately (median or mean)",
    "learned": "words and shape of the prompt: a prior, adapted online to the model and each tenant",
    "oracle": "true lengths, in virtual time only: the limit of what estimates can give",
}
"""Name -> one line that says what it does."""

LIVE_ESTIMATORS = {name: what for name, what in ESTIMATORS.items() if name != "oracle"}
"""Those that a live run may have."""


def estimator_from(
    kind: str,
    *,
    counter: Counter = count_words,
    calibrate: bool = True,
    faithful: bool = False,
    statistic: str = "median",
    prior: Prior = NO_PRIOR,
    embed: Embed | None = None,
) -> Estimator:
    """A fresh estimator by name. ``calibrate`` and ``faithful`` are for paper, ``statistic`` for tenant,
    ``prior`` and ``embed`` for learned. Raises ValueError that lists what is allowed.
    """
    match kind:
        case "paper":
            return PaperEstimator(counter=counter, calibrate=calibrate, faithful=faithful)
        case "tenant":
            return TenantEstimator(counter=counter, statistic=statistic)
        case "learned":
            return LearnedEstimator(counter=counter, prior=prior, embed=embed)
        case "oracle":
            return Oracle(counter=counter)
        case _:
            raise ValueError(f"unknown estimator {kind!r}; allowed: {', '.join(ESTIMATORS)}")
