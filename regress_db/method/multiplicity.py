"""Many series judged on one night: Benjamini and Hochberg's step-up over their p-values.

Pure. Called by `regress_db.method.comparing.decide`.
"""

from __future__ import annotations

from collections.abc import Sequence


def q_values(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values, in the order given: those up to q are the discoveries at rate q.

    Where nothing changed at all, any discovery happens with probability at most q. Valid for independent p-values and
    for positively dependent ones (Benjamini & Hochberg 1995; Benjamini & Yekutieli 2001, theorem 1.2).
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index], reverse=True)
    adjusted = [1.0] * len(p_values)
    smallest = 1.0
    for place, index in enumerate(order):
        smallest = min(smallest, p_values[index] * len(p_values) / (len(p_values) - place))
        adjusted[index] = smallest
    return adjusted
