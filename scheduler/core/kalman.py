"""Numbers that drift slowly, learned from noisy errors: Kalman filters of one and of three.

R. E. Kalman, A New Approach to Linear Filtering and Prediction Problems (1960); what is believed stays as it
is but for a random walk, so that each step only adds ``wander`` to the variance.

Variances are in variances of the noise. Sizes are written out: they run once for every answer.
"""

from __future__ import annotations

Three = tuple[float, float, float]


class Offset:
    """One number: what is believed, how uncertain that is, and how much it changes with each error."""

    __slots__ = ("value", "variance", "wander")

    def __init__(self, variance: float, wander: float) -> None:
        self.value = 0.0
        self.variance = variance
        self.wander = wander

    def learn(self, error: float) -> None:
        """``error``: what was seen beyond what was believed."""
        gain = self.variance / (1 + self.variance)
        self.value += gain * error
        self.variance = gain + self.wander


class Weights:
    """Three weights of a linear model."""

    __slots__ = ("covariance", "values", "wander")

    def __init__(self, values: Three, variances: Three, wander: Three) -> None:
        self.values = values
        self.covariance = ((variances[0], 0.0, 0.0), (0.0, variances[1], 0.0), (0.0, 0.0, variances[2]))
        self.wander = wander

    def learn(self, inputs: Three, error: float) -> None:
        """``error``: what was seen with these inputs beyond what the weights said."""
        (aa, ab, ac), (_, bb, bc), (_, _, cc) = self.covariance  # symmetric
        (a, b, c), (x, y, z), (wander_a, wander_b, wander_c) = self.values, inputs, self.wander
        towards_a, towards_b, towards_c = (
            aa * x + ab * y + ac * z,
            ab * x + bb * y + bc * z,
            ac * x + bc * y + cc * z,
        )
        scale = 1 / (1 + towards_a * x + towards_b * y + towards_c * z)
        gain_a, gain_b, gain_c = towards_a * scale, towards_b * scale, towards_c * scale
        self.values = (a + gain_a * error, b + gain_b * error, c + gain_c * error)
        ab, ac, bc = ab - gain_a * towards_b, ac - gain_a * towards_c, bc - gain_b * towards_c
        self.covariance = (
            (aa - gain_a * towards_a + wander_a, ab, ac),
            (ab, bb - gain_b * towards_b + wander_b, bc),
            (ac, bc, cc - gain_c * towards_c + wander_c),
        )
