"""Whether a study can be conditioned on embeddings of pictures as it says, found out without training."""

from __future__ import annotations

from nas.errors import InputError
from nas.networks.backbones import Backbone
from nas.settings.study import Study


def check(study: Study, network: Backbone) -> None:
    """Raises InputError for a prior without embeddings or embeddings without a prior, and for a network that takes none."""
    how, prior = study.conditioning.image, study.prior.name
    if how == "none":
        if prior != "none":
            raise InputError(
                f"prior: {prior} makes embeddings of pictures, but conditioning.image is none; expected alone or with_text there"
            )
        return
    if how == "alone" and prior == "none":
        raise InputError(
            "prior: none, but with conditioning.image: alone nothing else tells the denoiser what to draw; expected another prior"
        )
    if network.pooled_width is None:
        raise InputError(
            f"conditioning.image: {how}, but the network takes no pooled vector, by which it would be told; expected an "
            "architecture with a pooled_width"
        )
    if study.training.init == "supernet":
        raise InputError(
            f"training.init: supernet: the shipped weights know no embeddings of pictures (conditioning.image: {how}); expected "
            "scratch or base"
        )
