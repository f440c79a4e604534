"""Numbers that drift slowly, learned from noisy errors: Kalman filters of one and of three.

R. E. Kalman, A New Approach to Linear Filtering and Prediction Problems (1960); what is believed stays as it
is but for a random walk, so that each step only adds ``wander`` to the variance.

Variances are in variances of the noise. Sizes are written out: they run once for every answer.
"""

from __future__ import annotations

Three = tuple[float, float, float]
Six = tuple[float, float, float, float, float, float]


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


class Plane:
    """level + slope_x * x + slope_y * y, of which the level alone wanders."""

    __slots__ = ("covariance", "values", "wander")

    def __init__(self, values: Three, variances: Three, wander: float) -> None:
        self.values = values
        self.covariance: Six = (variances[0], 0.0, 0.0, variances[1], 0.0, variances[2])  # the upper half
        self.wander = wander

    def learn(self, x: float, y: float, error: float) -> None:
        """``error``: what was seen there beyond what the plane said."""
        aa, ab, ac, bb, bc, cc = self.covariance
        a, b, c = self.values
        towards_a = aa + ab * x + ac * y
        towards_b = ab + bb * x + bc * y
        towards_c = ac + bc * x + cc * y
        scale = 1 / (1 + towards_a + towards_b * x + towards_c * y)
        gain_a, gain_b, gain_c = towards_a * scale, towards_b * scale, towards_c * scale
        self.values = (a + gain_a * error, b + gain_b * error, c + gain_c * error)
        self.covariance = (
            aa - gain_a * towards_a + self.wander,
            ab - gain_a * towards_b,
            ac - gain_a * towards_c,
            bb - gain_b * towards_b,
            bc - gain_b * towards_c,
            cc - gain_c * towards_c,
        )
