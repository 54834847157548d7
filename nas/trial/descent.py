"""A network that starts from what an earlier trial left, in place of what `training.init` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nas.networks.backbones import Backbone
from nas.trial.bench import Bench, fresh
from nas.weights import inheritance
from nas.weights.checkpoints import load_weights


@dataclass(frozen=True)
class Parent:
    """A trial that was trained."""

    architecture: dict[str, Any]
    """At deploy scale."""
    weights: Path


def network(bench: Bench, proxy: Backbone, seed: int, parent: Parent) -> nn.Module:
    """The proxy's network with its parent's weights, and copies of blocks where it has more. Raises InputError where they do not
    fit."""
    made, whole = fresh(proxy, seed), bench.scaled(parent.architecture)
    trained = whole.build()
    load_weights(trained, parent.weights, "training.init: inherited")
    inheritance.inherit(made, trained, inheritance.sources(proxy, whole), grown=True)
    return made
