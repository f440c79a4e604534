"""What a stream's requests are: whose, which prompt, how long.

Arrivals, content and lengths have a generator of chance each, made from the seed and the stream's place: what
one draws never shifts another, so the same requests come whatever the policy does.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, chain, repeat
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState

from scheduler.core.estimate import BASE_TOKENS, classify
from scheduler.core.types import CATEGORIES, Request, Tenant
from scheduler.load.lengths import HEAVY_MAX_TOKENS, PROFILES, QUANTILES, length_table
from scheduler.load.prompts import label, prompt_tables, style
from scheduler.load.samples import Sample, Shuffled, read_samples
from scheduler.load.stream import Lengths, Stream
from scheduler.load.traces import Row

DEFAULT_MIX: Mapping[str, float] = {"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10}


class Shift(NamedTuple):
    """A tenant's drift in force."""

    output_scale: float
    force: bool


class Setting(NamedTuple):
    """What all sources of a workload share."""

    seed: int
    tenants: Mapping[str, Tenant]
    shifts: Mapping[str, Shift]  # by tenant; the workload changes it as the timeline says
    count_tokens: Callable[[str], int]
    labelled: bool  # the paper's label goes in front of each prompt

    def rng(self, stream: str, use: str) -> Random:
        return Random(f"{self.seed}/{stream}/{use}")


# A request before its time and id: (tenant, tier), (category, prompt, prompt tokens, max_tokens), length.
# Plain tuples, and from templates a block at a time: this is the hot path of a virtual run.
Ask = tuple[str, str, int, int]
Draft = tuple[tuple[str, str], Ask, float]

_BLOCK = 512  # drafts


class Content:
    """Makes one stream's requests."""

    def __init__(self, stream: Stream, key: str, setting: Setting) -> None:
        self._stream = stream
        self._setting = setting
        self._sampling = stream.sampling.to_core()
        self._name = stream.name or key
        self._shifts = setting.shifts
        self._labelled = setting.labelled and stream.trace is None
        self._rng = setting.rng(key, "content")
        self._length_rng = setting.rng(key, "lengths")
        lengths = stream.lengths or Lengths(profile="near")
        params = lengths.lognormal or PROFILES[lengths.profile or "near"]
        self._lengths = {str(name): length_table(*values) for name, values in params.items()}
        usual = dict.fromkeys(CATEGORIES, HEAVY_MAX_TOKENS) if lengths.profile == "heavy" else BASE_TOKENS
        self._max_tokens = {str(name): tokens for name, tokens in (stream.max_tokens or usual).items()}
        measured = read_samples(lengths.file, "output_tokens", lengths.model) if lengths.file else []
        self._measured = Shuffled(measured, self._length_rng) if measured else None
        self._whose = self._tenants()
        self.drafts = self._choose_drafts(lengths, measured)

    def from_row(self, row: Row, cap: int) -> Draft:
        """A trace's request. Where the row has no category, its prompt says, and else it has none; ``cap`` is
        max_tokens where neither the stream nor the row says.
        """
        tenant, tier = next(self._whose) if self._stream.tenant else (row.tenant, "")
        tier = row.tier or tier or self._setting.tenants[tenant].tier
        category = row.category or (classify(row.prompt) if row.prompt else "")
        own = self._max_tokens[category or "short_qa"] if self._stream.max_tokens else None
        length = float(row.output_tokens or 0)
        if self._stream.lengths or not length:
            length = self._length(category or "short_qa")
        tokens = row.prompt_tokens or self._setting.count_tokens(row.prompt)
        return (tenant, tier), (category, row.prompt, tokens, own or row.max_tokens or cap), length

    def request(self, draft: Draft, number: int, request_id: str, at_s: float) -> Request:
        """The workload's ``number``-th request."""
        (tenant, tier), (category, prompt, tokens, cap), length = draft
        forced = None
        if self._labelled:
            prompt = label(number, tenant, category) + prompt
            tokens = self._setting.count_tokens(prompt)
        if self._shifts and (shift := self._shifts.get(tenant)) is not None:
            length *= shift.output_scale
            if prompt and (added := style(shift.output_scale)):
                prompt += added
                tokens += self._setting.count_tokens(added)
            if shift.force:
                forced = min(max(1, round(length)), cap)
        return Request(
            request_id, tenant, tier, at_s, tokens or 1, cap, prompt, category,
            round(length) or 1, forced, self._sampling, False, self._name,
        )  # fmt: skip

    def _choose_drafts(self, lengths: Lengths, measured: Sequence[Sample]) -> Iterator[Draft]:
        """``measured`` is what the file of the lengths holds."""
        stream = self._stream
        prompts_file = stream.prompts.file if stream.prompts else None
        made = stream.prompts or stream.mix
        together = not made and all(sample.prompt for sample in measured)
        if measured and (together or prompts_file == lengths.file):
            return self._from_samples(measured)  # a prompt and its length stay together
        if prompts_file:
            samples = read_samples(prompts_file, "prompt")
            if stream.lengths:  # it goes before what the file says
                samples = [sample._replace(output_tokens=None) for sample in samples]
            return self._from_samples(samples)
        return chain.from_iterable(self._from_templates())

    def _from_templates(self) -> Iterator[Iterator[Draft]]:
        """Blocks of drafts: numpy draws what the stream's generators would, one by one."""
        random, length_random = _many(self._rng), _many(self._length_rng)
        pairs, tenant_bounds = self._pairs()
        mix = {str(name): share for name, share in (self._stream.mix or DEFAULT_MIX).items()}
        categories, bounds = _bounds(mix)
        prompts = [(name, prompt) for name in categories for prompt in prompt_tables()[name]]
        sizes = np.array([len(prompt_tables()[name]) for name in categories])
        firsts = np.cumsum(sizes) - sizes  # where in prompts each category begins
        quantiles = np.array([self._lengths[name] for name in categories])

        @cache
        def ask(index: int) -> Ask:
            category, prompt = prompts[index]
            return category, prompt, self._setting.count_tokens(prompt), self._max_tokens[category]

        whose: Iterable[tuple[str, str]] = repeat(pairs[0])
        while True:
            draws = random.random_sample((_BLOCK, 3 if tenant_bounds else 2)).T
            if tenant_bounds:
                places = np.searchsorted(tenant_bounds, draws[0], side="right")
                whose = map(pairs.__getitem__, places.tolist())
            kinds = np.searchsorted(bounds, draws[-2], side="right")
            chosen = firsts[kinds] + (draws[-1] * sizes[kinds]).astype(np.int64)
            if self._measured is None:
                ranks = (length_random.random_sample(_BLOCK) * QUANTILES).astype(np.int64)
                lengths = quantiles[kinds, ranks].tolist()
            else:
                lengths = [self._length(categories[kind]) for kind in kinds]
            yield zip(whose, map(ask, chosen.tolist()), lengths)  # noqa: B905 - whose may repeat for ever

    def _from_samples(self, samples: Sequence[Sample]) -> Iterator[Draft]:
        deck = Shuffled(samples, self._rng)
        count, caps = self._setting.count_tokens, self._max_tokens
        for whose in self._whose:
            sample = deck.draw()
            length = float(sample.output_tokens or 0) or self._length(sample.category)
            tokens = sample.prompt_tokens or count(sample.prompt)
            yield whose, (sample.category, sample.prompt, tokens, caps[sample.category]), length

    def _pairs(self) -> tuple[list[tuple[str, str]], list[float]]:
        """Tenants with their tiers, and the bounds of their shares."""
        tenants = self._setting.tenants
        names, bounds = _bounds(self._stream.tenant or {})
        return [(name, tenants[name].tier) for name in names], bounds

    def _tenants(self) -> Iterator[tuple[str, str]]:
        """Tenant and tier of each request in turn."""
        random, (pairs, bounds) = self._rng.random, self._pairs()
        while len(pairs) == 1:
            yield pairs[0]
        while pairs:
            yield pairs[bisect(bounds, random())]

    def _length(self, category: str) -> float:
        if self._measured is not None:
            return float(self._measured.draw().output_tokens or 0)
        quantiles = self._lengths[category]
        return quantiles[int(self._length_rng.random() * len(quantiles))]


def _many(rng: Random) -> RandomState:
    """Draws many at a time of what ``rng.random()`` would: both make their numbers in the same way."""
    *key, position = rng.getstate()[1]
    many = RandomState(0)
    many.set_state(("MT19937", np.array(key, dtype=np.uint32), position, 0, 0.0))
    return many


def _bounds(shares: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Names and the inner bounds of their shares of [0, 1): ``names[bisect(bounds, random())]`` draws one."""
    used = {name: share for name, share in shares.items() if share > 0}
    total = sum(used.values())
    return list(used), [bound / total for bound in accumulate(used.values())][:-1]
