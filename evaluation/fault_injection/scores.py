"""The arithmetic of a detector's measurement: counts by category, shares with Wilson intervals, F1, false alarms.

Filled by the harness, read by reports. Every interval is a 95 % one and takes outputs as independent; those of one day and
symbol share their market, so the true width is somewhat larger.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Share:
    """A proportion with its 95 % Wilson score interval; NaN where n is 0.

    Notes
    -----
    Wilson (JASA 22, 1927): (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike the Wald interval it stays within
    0..1 and keeps its coverage at 0 and at n.
    """

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share itself."""
        return self.hits / self.n if self.n else math.nan

    @property
    def low(self) -> float:
        """The lower bound."""
        return self._bounds()[0]

    @property
    def high(self) -> float:
        """The upper bound."""
        return self._bounds()[1]

    def _bounds(self) -> tuple[float, float]:
        if not self.n:
            return math.nan, math.nan
        p, n = self.hits / self.n, self.n
        centre = p + Z * Z / (2 * n)
        spread = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        scale = 1 + Z * Z / n
        low = 0.0 if self.hits == 0 else (centre - spread) / scale
        high = 1.0 if self.hits == n else (centre + spread) / scale
        return low, high


@dataclass(frozen=True, slots=True)
class Rate:
    """A mean count an output with a 95 % interval.

    Notes
    -----
    mean ± z·s/√n, and for no event at all the upper bound 3.69/n of an exact Poisson interval: the normal one would be 0.
    """

    total: int
    squares: int
    n: int

    @property
    def value(self) -> float:
        """Findings an output."""
        return self.total / self.n if self.n else math.nan

    @property
    def low(self) -> float:
        """The lower bound."""
        return max(0.0, self.value - self._half())

    @property
    def high(self) -> float:
        """The upper bound."""
        if self.n and not self.total:
            return 3.6889 / self.n
        return self.value + self._half()

    def _half(self) -> float:
        if self.n < 2:
            return math.nan
        variance = (self.squares - self.total**2 / self.n) / (self.n - 1)
        return Z * math.sqrt(max(0.0, variance) / self.n)


@dataclass(frozen=True, slots=True)
class F1:
    """The harmonic mean of precision and recall with a 95 % interval.

    Notes
    -----
    F1 = 2j/(1 + j) grows with the Jaccard index j = tp/(tp + fp + fn), a proportion: its Wilson bounds are carried over.
    """

    jaccard: Share

    @property
    def value(self) -> float:
        """2·tp / (2·tp + fp + fn)."""
        return self._of(self.jaccard.value)

    @property
    def low(self) -> float:
        """The lower bound."""
        return self._of(self.jaccard.low)

    @property
    def high(self) -> float:
        """The upper bound."""
        return self._of(self.jaccard.high)

    @staticmethod
    def _of(jaccard: float) -> float:
        return 2 * jaccard / (1 + jaccard)


@dataclass(slots=True)
class CategoryScore:
    """Counts of one category.

    Attributes
    ----------
    n : int
        Outputs with this fault.
    found : int
        Of those, how many have a finding of the category, wherever it points.
    joint : int
        Of those, how many have one that points to the fault.
    false_alarms : int
        Outputs without the fault, whether sound or damaged elsewhere, that have a finding of the category.
    on_clean : int
        Findings of the category on sound outputs.
    sub_codes, sub_codes_right : int
        Faults found with pointer that have a sub-code, and how many were given it.
    repaired, silenced : int
        Faults found with pointer whose original value was put back, and how many findings vanished.
    instead : Counter
        What was reported where the fault was not: categories, ``nothing``, or ``pointer <where>`` for the right category
        elsewhere.
    operators : dict
        By operator: joint hits and n.
    """

    n: int = 0
    found: int = 0
    joint: int = 0
    false_alarms: int = 0
    on_clean: int = 0
    sub_codes: int = 0
    sub_codes_right: int = 0
    repaired: int = 0
    silenced: int = 0
    instead: Counter[str] = field(default_factory=Counter)
    operators: dict[str, list[int]] = field(default_factory=dict)

    @property
    def precision(self) -> Share:
        """Share of outputs with a finding of the category that have the fault."""
        return Share(self.found, self.found + self.false_alarms)

    @property
    def recall(self) -> Share:
        """Share of the faults for which the category was reported."""
        return Share(self.found, self.n)

    @property
    def f1(self) -> F1:
        """Of precision and recall."""
        return F1(Share(self.found, self.n + self.false_alarms))

    @property
    def pointer(self) -> Share:
        """Share of the faults whose category was reported that were pointed to."""
        return Share(self.joint, self.found)

    @property
    def joint_accuracy(self) -> Share:
        """Share of the faults reported with category and pointer."""
        return Share(self.joint, self.n)

    @property
    def repair(self) -> Share:
        """Share of the findings that vanish when the original value is put back."""
        return Share(self.silenced, self.repaired)

    @property
    def sub_code(self) -> Share:
        """Share of right sub-codes where there is one."""
        return Share(self.sub_codes_right, self.sub_codes)


@dataclass(slots=True)
class TaxonomyMeasurement:
    """What `evaluate` measured.

    Attributes
    ----------
    categories : dict of str to CategoryScore
        The categories that code decides.
    needs_a_model : dict of str to str
        Categories, or parts of them, that only judges decide: not measured.
    clean, clean_alarms, clean_squares, clean_alarmed : int
        Sound outputs with an opinion, findings on them, the sum of their squares, outputs with any.
    clean_by_label : dict
        By origin of the sound outputs, abstentions apart: outputs with any finding, and outputs.
    damaged, two_faults : int
        Damaged outputs, and those with two faults.
    """

    categories: dict[str, CategoryScore]
    needs_a_model: dict[str, str]
    clean: int = 0
    clean_alarms: int = 0
    clean_squares: int = 0
    clean_alarmed: int = 0
    clean_by_label: dict[str, list[int]] = field(default_factory=dict)
    damaged: int = 0
    two_faults: int = 0

    @property
    def joint_accuracy(self) -> Share:
        """Category and pointer right, over all faults."""
        return Share(*_sums((s.joint, s.n) for s in self.categories.values()))

    @property
    def repair(self) -> Share:
        """Findings that vanish on repair, over all faults."""
        return Share(*_sums((s.silenced, s.repaired) for s in self.categories.values()))

    @property
    def macro_f1(self) -> float:
        """Mean of the categories' F1 where they have faults."""
        values = [score.f1.value for score in self.categories.values() if score.n]
        return sum(values) / len(values) if values else math.nan

    @property
    def false_alarms(self) -> Rate:
        """Findings a sound output."""
        return Rate(self.clean_alarms, self.clean_squares, self.clean)

    @property
    def alarmed(self) -> Share:
        """Share of sound outputs with any finding."""
        return Share(self.clean_alarmed, self.clean)


def _sums(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    hits = n = 0
    for one, other in pairs:
        hits, n = hits + one, n + other
    return hits, n
