"""Contenders for benchmarks/cuda_engine.py that are right, wrong or broken on purpose."""

from __future__ import annotations

import torch
from cuda_peers import LegacyBackend


class Right(LegacyBackend):
    """The adapter of DeepEP's legacy interface over a library that is here."""

    name = "right"
    module = "ep_core"


class Wrong(Right):
    def combined(self) -> torch.Tensor:
        return super().combined() + 1


class Broken(Right):
    def combine(self) -> None:
        raise RuntimeError("it cannot combine")
