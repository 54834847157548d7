"""The `training` section of a study file."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from nas.documents.section import Section
from nas.documents.strict import Decay
from nas.networks.lora import Lora

OF_BASE = ("base", "inherited")  # values of `init` that need a base model
UNSLICED = ("scratch", *OF_BASE)  # those that need no supernet
MOST_IMAGES, MOST_IN_BATCH = 10**11, 2**20  # a hundred times what anybody trains with


class BlockDrop(Section):
    """Blocks that are left out by chance, so that the network bears their removal: stochastic depth (Huang et al. 2016, arXiv
    1603.09382), as SnapFusion trains before it removes blocks (Li et al. 2023, arXiv 2306.00980, section 4.1)."""

    probability: float = Field(0.2, gt=0, le=0.5)
    """Chance of each residual and each transformer block to be left out of an update; at most half of them are at once.
    SnapFusion does not report its own (assumption)."""
    rise_images: int = Field(0, ge=0, le=MOST_IMAGES)
    """Images over which the chance rises linearly to that, from 0."""


class Training(Section):
    """How a proxy network is trained. Lengths are in images seen, so that batch sizes compare."""

    images_seen: int = Field(16_384, ge=1, le=MOST_IMAGES)
    """Images of the last rung."""
    batch: int = Field(64, ge=1, le=MOST_IN_BATCH)
    """Images per update."""
    learning_rate: float = Field(1e-3, gt=0, le=1)
    """AdamW's, reached after the warm-up and then held: rungs stay comparable (MobileDiffusion trains with 1e-3)."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay of the gradient's first and second moment."""
    weight_decay: float = Field(0.01, ge=0, le=10)
    """AdamW's, of every trained parameter."""
    warmup_images: int = Field(1_024, ge=0, le=MOST_IMAGES)
    """Linear warm-up of the learning rate."""
    gradient_clip: float = Field(1.0, gt=0)
    """Largest norm of the gradient."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Moving average of the weights, which is what is sampled. From scratch it is warmed up as min(decay, (1 + i) / (10 + i)),
    to forget the random start; after a warm start it is not, because the start is already good."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of captions replaced by the empty one, for classifier-free guidance."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What forward and backward passes compute in; weights are fp32 either way."""
    init: str = "scratch"
    """`scratch`, `base` (the study's base model), `inherited` (the same for a network that lacks some of the base's blocks: each
    block has the weights it had there), `supernet` (the weights shipped for this space and proxy), or a path to supernet
    weights."""
    lora: Lora | None = None
    """Train low-rank adapters of the network instead of its weights, for example {rank: 8}."""
    block_drop: BlockDrop | None = None
    """Leave blocks of the network out by chance, for example {probability: 0.2}; in all its calls of an update the same, and in
    none of critics, teachers and of what is drawn. None: all blocks are always there."""

    @model_serializer(mode="wrap")
    def _written(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `block_drop` where there is none: trainings that were recorded before it read and compare as they did."""
        written: dict[str, Any] = plain(self)
        return {name: value for name, value in written.items() if name != "block_drop" or value is not None}

    @property
    def sliced(self) -> bool:
        """Whether it starts from a slice of supernet weights."""
        return self.init not in UNSLICED

    def updates(self, images: int) -> int:
        """Updates after which `images` have been seen."""
        return math.ceil(images / self.batch)
