"""What a stream's requests are: whose, which prompt, how long.

Arrivals, content and lengths have a generator of chance each, made from the seed and the stream's place: what
one draws never shifts another, so the same requests come whatever the policy does.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping
from itertools import accumulate
from random import Random
from typing import NamedTuple

from scheduler.core.estimate import BASE_TOKENS, classify
from scheduler.core.types import CATEGORIES, Request, Tenant
from scheduler.load.lengths import HEAVY_MAX_TOKENS, PROFILES, LengthModel
from scheduler.load.prompts import PaperPrompts, label, style
from scheduler.load.samples import Shuffled, read_samples
from scheduler.load.schema import Lengths, Stream
from scheduler.load.traces import Row

DEFAULT_MIX: Mapping[str, float] = {"short_qa": 0.40, "summary": 0.25, "technical": 0.25, "report": 0.10}
TRACE_MAX_TOKENS = 1024  # where neither the stream nor the trace's row says

CountTokens = Callable[[str], int]


class Shift(NamedTuple):
    """A tenant's drift in force."""

    output_scale: float
    force: bool


class Setting(NamedTuple):
    """What all sources of a workload share."""

    seed: int
    tenants: Mapping[str, Tenant]
    shifts: Mapping[str, Shift]  # by tenant; the workload changes it as the timeline says
    count_tokens: CountTokens
    labelled: bool  # the paper's label goes in front of each prompt

    def rng(self, stream: str, use: str) -> Random:
        return Random(f"{self.seed}/{stream}/{use}")


class Pick:
    """A weighted choice of one name."""

    __slots__ = ("_bounds", "_names", "_random")

    def __init__(self, shares: Mapping[str, float], rng: Random) -> None:
        used = {name: share for name, share in shares.items() if share > 0}
        total = sum(used.values())
        self._names = list(used)
        self._bounds = [bound / total for bound in accumulate(used.values())][:-1]
        self._random = rng.random

    def draw(self) -> str:
        return self._names[bisect(self._bounds, self._random())] if self._bounds else self._names[0]


class Content:
    """Makes one stream's requests: who, what prompt, how long."""

    def __init__(self, stream: Stream, key: str, setting: Setting) -> None:
        self._stream = stream
        self._setting = setting
        self._sampling = stream.sampling.to_core()
        self._name = stream.name or key
        rng = setting.rng(key, "content")
        self._tenant = Pick(stream.tenant, rng) if stream.tenant else None
        self._category = Pick(stream.mix or DEFAULT_MIX, rng)
        self._prompts = PaperPrompts(rng, setting.count_tokens)
        lengths = stream.lengths or Lengths(profile="near")
        table = lengths.lognormal or PROFILES[lengths.profile or "near"]
        self._lengths = LengthModel(
            {str(c): values for c, values in table.items()}, setting.rng(key, "lengths")
        )
        usual = dict.fromkeys(CATEGORIES, HEAVY_MAX_TOKENS) if lengths.profile == "heavy" else BASE_TOKENS
        self._max_tokens: Mapping[str, int] = {str(c): n for c, n in (stream.max_tokens or usual).items()}
        self._sample: Shuffled | None = None
        self._sample_lengths: Shuffled | None = None
        if stream.prompts and stream.prompts.file:
            self._sample = Shuffled(read_samples(stream.prompts.file), rng)
        if lengths.file:
            drawn = read_samples(lengths.file, lengths.model)
            same = stream.prompts.file == lengths.file if stream.prompts else bool(drawn[0].prompt)
            if same:  # prompt and length belong together
                self._sample = Shuffled(drawn, rng)
            else:
                self._sample_lengths = Shuffled(drawn, setting.rng(key, "lengths"))

    def make(self, number: int, request_id: str, at_s: float) -> Request:
        """A drawn request."""
        tenant = self._tenant.draw() if self._tenant else ""
        drawn: int | None = None
        if self._sample is None:
            category = self._category.draw()
            prompt, prompt_tokens = self._prompts.of(category)
        else:
            prompt, category, known, drawn = self._sample.draw()
            prompt_tokens = known or self._setting.count_tokens(prompt)
        if self._sample_lengths is not None:
            drawn = self._sample_lengths.draw().output_tokens
        if self._setting.labelled:
            prompt = label(number, tenant, category) + prompt
            prompt_tokens = self._setting.count_tokens(prompt)
        return self._request(
            request_id, at_s, tenant, "", category, prompt, prompt_tokens, drawn, self._max_tokens[category]
        )

    def from_row(self, request_id: str, at_s: float, row: Row) -> Request:
        """A trace's request."""
        tenant = self._tenant.draw() if self._tenant else row.tenant
        category = row.category or (classify(row.prompt) if row.prompt else "")
        own = self._max_tokens[category or "short_qa"] if self._stream.max_tokens else None
        max_tokens = own or row.max_tokens or TRACE_MAX_TOKENS
        prompt_tokens = row.prompt_tokens or self._setting.count_tokens(row.prompt)
        drawn = None if self._stream.lengths else row.output_tokens
        return self._request(
            request_id, at_s, tenant, row.tier, category, row.prompt, prompt_tokens, drawn, max_tokens
        )

    def _request(
        self,
        request_id: str,
        at_s: float,
        tenant: str,
        tier: str,
        category: str,
        prompt: str,
        prompt_tokens: int,
        drawn: int | None,
        max_tokens: int,
    ) -> Request:
        shift = self._setting.shifts.get(tenant)
        scale, forced = 1.0, None
        if shift is not None:
            scale = shift.output_scale
            if prompt and scale != 1.0:
                prompt += style(scale)
                prompt_tokens = self._setting.count_tokens(prompt)
        if drawn is None:
            intended = self._lengths.of(category or "short_qa", scale)
        else:
            intended = max(1, round(drawn * scale))
        if shift is not None and shift.force:
            forced = min(intended, max_tokens)
        return Request(
            request_id,
            tenant,
            tier or self._setting.tenants[tenant].tier,
            at_s,
            max(1, prompt_tokens),
            max_tokens,
            prompt,
            category,
            intended,
            forced,
            self._sampling,
            False,
            self._name,
        )
