"""A run of engine steps with the same batch, in closed form.

Step j (from 1) of a phase takes ``max(floor, fixed + c (context + j batch)) + b batch``, for each step adds a
token to the KV cache of every sequence; the first also prefills. So the steps are flat as long as the floor
holds and an arithmetic series from there on: the time of any step is a polynomial, and the step at any time
the root of a quadratic.
"""

from __future__ import annotations

from bisect import bisect_right
from math import sqrt

from scheduler.core.metrics import gap_bucket
from scheduler.twin.profile import Profile


class Phase:
    """The phase under way. One object serves for all phases of a GPU: ``begin`` sets it up anew."""

    __slots__ = (
        "_flat_step_s",
        "_flat_steps",
        "_for_batch",
        "_linear_step_s",
        "_prefill_s",
        "_profile",
        "_slope_s",
        "_zero_s",
        "end_s",
        "first_s",
        "steps",
    )

    def __init__(self, profile: Profile, max_batch: int) -> None:
        self._profile = profile
        # Of each batch: a step without context, how much longer each is than the one before, a flat step.
        self._for_batch = [
            (
                profile.fixed_s + profile.sequences_s(batch),
                profile.per_context_token_s * batch,
                profile.floor_s + profile.sequences_s(batch),
            )
            for batch in range(max_batch + 1)
        ]
        self._flat_step_s = 0.0
        self.steps = 0
        self.first_s = self.end_s = 0.0  # ends of its first step and of its last

    def begin(self, start_s: float, batch: int, context: int, prefill: int, steps: int) -> float:
        """``steps`` steps of ``batch`` sequences; step j ends with ``context + j batch`` tokens of KV.
        Returns when it ends.
        """
        profile = self._profile
        empty_s, slope_s, flat_step_s = self._for_batch[batch]
        self._linear_step_s = linear_step_s = empty_s + profile.per_context_token_s * context
        self._slope_s = slope_s
        prefill_s = profile.per_prefill_token_s * prefill
        if prefill > profile.prefill_knee:
            prefill_s = profile.prefill_s(prefill)
        self._prefill_s = prefill_s
        self._zero_s = zero_s = start_s + prefill_s
        self.steps = steps
        first_step_s = linear_step_s + slope_s
        if first_step_s > flat_step_s:  # so it is for a large batch: not by way of ``at``
            self._flat_steps = 0
            self.first_s = zero_s + first_step_s
            self.end_s = end_s = zero_s + steps * (linear_step_s + slope_s * ((steps + 1) * 0.5))
            return end_s
        if linear_step_s + slope_s * steps <= flat_step_s:
            self._flat_steps = steps
        else:
            self._flat_steps = int((flat_step_s - linear_step_s) / slope_s)
        self._flat_step_s = flat_step_s
        self.first_s = zero_s + flat_step_s
        self.end_s = self.at(steps)
        return self.end_s

    def cut(self, now: float) -> float:
        """End it with its first step that ends at or after ``now``; returns when that is."""
        steps = self._about(now) + 1
        while steps > 1 and self.at(steps - 1) >= now:
            steps -= 1
        while (end_s := self.at(steps)) < now:
            steps += 1
        if steps < self.steps:
            self.steps, self.end_s = steps, end_s
        return self.end_s

    def at(self, steps: int) -> float:
        """When that many steps are done; at least one."""
        flat = self._flat_steps
        if flat == 0:
            return self._zero_s + steps * (self._linear_step_s + self._slope_s * ((steps + 1) * 0.5))
        if steps <= flat:
            return self._zero_s + steps * self._flat_step_s
        series = (steps * (steps + 1) - flat * (flat + 1)) // 2
        linear_s = (steps - flat) * self._linear_step_s + self._slope_s * series
        return self._zero_s + (flat * self._flat_step_s + linear_s)

    def steps_done(self, now: float) -> int:
        """How many steps are done at ``now``."""
        steps = min(self._about(now), self.steps)
        if steps < self.steps and self.at(steps + 1) <= now:
            return steps + 1
        if steps > 0 and self.at(steps) > now:
            return steps - 1
        return steps

    def _about(self, now: float) -> int:
        """How many steps are done at ``now`` but for rounding, which may put the root one off."""
        elapsed_s = now - self._zero_s
        if elapsed_s <= 0.0:
            return 0
        flat = self._flat_steps
        rest_s = elapsed_s - flat * self._flat_step_s
        if rest_s < 0.0 or flat >= self.steps:
            return int(elapsed_s / self._flat_step_s)
        # slope/2 i^2 + first i = rest, solved in the form that stands a slope of 0
        slope_s = self._slope_s
        first_s = self._linear_step_s + slope_s * (flat + 0.5)
        return flat + int(2.0 * rest_s / (first_s + sqrt(first_s * first_s + 2.0 * slope_s * rest_s)))

    def duration_s(self, step: int) -> float:
        """Of one step, from 1."""
        flat = step <= self._flat_steps
        step_s = self._flat_step_s if flat else self._linear_step_s + self._slope_s * step
        return step_s + self._prefill_s if step == 1 else step_s

    def count_into(self, counts: dict[int, int]) -> None:
        """Add the duration of every step to a histogram {gap_bucket: count}."""
        bucket = gap_bucket(self.duration_s(1))
        counts[bucket] = counts.get(bucket, 0) + 1
        step, last = 2, self.steps
        if last < 2:
            return
        last_bucket = gap_bucket(self.duration_s(last))
        while step <= last:
            # From the second on they only get longer: the steps of one bucket lie side by side.
            bucket = gap_bucket(self.duration_s(step))
            after = last + 1
            if bucket != last_bucket:
                steps = range(step, after)
                after = step + bisect_right(steps, bucket, key=lambda j: gap_bucket(self.duration_s(j)))
            counts[bucket] = counts.get(bucket, 0) + after - step
            step = after
