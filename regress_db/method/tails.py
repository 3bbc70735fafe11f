"""How far out runs of a platform really fall: the pooled deviates of its baselines, as a reference for new runs.

A normal or t distribution fitted to ten runs says nothing true of its own far tail. The runs of all series of a
platform together do: each is measured against the others of its series, as if it were new. A new run is then as
surprising as its rank among them (a conformal p-value: Vovk, Gammerman & Shafer 2005, section 2.2), and beyond the
farthest of them belief grows only as fast as Student's t with `HEAVY_DF` degrees of freedom allows.

Pure. Made by `regress_db.method.spread.platform_prior`, used by `regress_db.method.comparing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from regress_db.method.distributions import normal_cdf, normal_quantile

Side = Literal[1, -1]
"""1: slower, -1: faster."""

HEAVY_DF = 4.0
"""Tail index where a platform says nothing. A t bound from ten runs at nominal 1 % was passed by 3.7 % of new runs on
public benchmark histories; 1/9 + 1/4 is the reciprocal of the degrees of freedom that would have said so."""


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """deviates: normal deviates of runs about the rest of their series, ascending, float64 [runs]."""

    deviates: NDArray[np.float64]

    @classmethod
    def of(cls, deviates: Sequence[float]) -> Tails:
        """From deviates in any order, at least one."""
        return cls(np.sort(np.asarray(deviates, dtype=np.float64)))

    def upper(self, z: float, side: Side) -> float:
        """Chance that a run with nothing new lies `z` or farther out on this side: never less than the normal says."""
        count = len(self.deviates)
        if side > 0:
            farther = count - int(np.searchsorted(self.deviates, z, side="left"))
        else:
            farther = int(np.searchsorted(self.deviates, -z, side="right"))
        seen = (1 + farther) / (count + 1)
        if farther == 0 and z > self._farthest(side):
            seen *= (self._farthest(side) / z) ** HEAVY_DF
        return max(normal_cdf(-z), seen)

    def quantile(self, chance: float, side: Side) -> float:
        """The z beyond which `upper` is at most `chance`, for 0 < chance < 1/2."""
        count = len(self.deviates)
        farther = int(chance * (count + 1)) - 1
        if farther >= 0:
            z = self.deviates[-1 - farther] if side > 0 else -self.deviates[farther]
        else:
            z = self._farthest(side) * (1 / ((count + 1) * chance)) ** (1 / HEAVY_DF)
        return max(float(z), -normal_quantile(chance))

    def _farthest(self, side: Side) -> float:
        return max(1.0, float(self.deviates[-1] if side > 0 else -self.deviates[0]))
