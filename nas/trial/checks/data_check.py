"""Whether a study has the pictures and the models it names, found out without training: before a run writes anything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

from nas import menu
from nas.datasets import BATCH
from nas.errors import InputError
from nas.networks import conditioning
from nas.networks.backbones import Backbone
from nas.settings.entries import Entry
from nas.settings.study import Study
from nas.weights import worlds


def check(study: Study, networks: Sequence[Backbone]) -> None:
    """Raises InputError for pictures and models that are not there or do not go together; `networks` are one of each kind in
    the study."""
    _check_size(study, networks)
    _check_pictures(study)
    _check_components(study)
    captions = _some_captions(study)
    conditioning.check(study.conditioning, captions)
    for index, entry in enumerate(study.metrics):
        module = menu.pick("metrics", entry.name)
        _check_judge(study, index, entry)
        if hasattr(module, "check"):
            try:
                module.check(entry.settings("metrics"), captions)
            except InputError as error:
                raise InputError(f"metrics.{index}.{error}") from None


def check_codes(study: Study, network: Backbone) -> None:
    """Raises InputError unless latents are numbers that a network denoises, or indices that it draws, of the same codebook."""
    entry = study.autoencoder
    held = menu.pick("autoencoders", entry.name).codes(entry.settings("autoencoders"))
    drawn: int | None = getattr(network, "codes", None)  # of families that draw indices
    if held is None and drawn is None:
        return
    if held is None:
        raise InputError(
            f"architecture.codes: {drawn}, but latents of autoencoder {entry.name} are numbers here; expected null, or "
            f"autoencoder {{name: vq, latents: indices, codes: {drawn}}}"
        )
    if drawn is None:
        raise InputError(
            "autoencoder.latents: indices are no numbers to denoise; expected quantised, unquantised, or a network that draws "
            f"token by token, with codes: {held}"
        )
    if held != drawn:
        raise InputError(f"architecture.codes: {drawn}, but autoencoder.codes is {held}; expected the same")
    if "tokens" not in menu.pick("objectives", study.objective.name).Objective.requires:
        raise InputError(
            f"objective: {study.objective.name} denoises numbers, and latents are indices; expected masked_autoregression"
        )
    try:
        study.sampling.macs(network.units(study.deploy.latent_size, study.deploy.text_tokens))
    except InputError as error:
        raise InputError(f"sampling.{error}") from None


def _check_judge(study: Study, index: int, entry: Entry) -> None:
    """Whether a judge that knows other pictures only, the one that ships, was asked for by its name."""
    module = menu.pick("metrics", entry.name)
    path = module.weights(entry.settings("metrics")) if hasattr(module, "weights") else None
    knows = worlds.made_for(path) if path is not None else None
    if knows is not None and "judge" not in entry.options and knows not in worlds.own(study.resolved()):
        raise InputError(
            f"metrics.{index}.judge: the judge of {entry.name} that ships knows pictures of {knows} only, not of "
            f"{study.dataset.name}; expected a folder, which nas prepare fills with one trained on these pictures, a model of "
            "open_clip, or shipped, to be judged by it all the same"
        )


def _check_size(study: Study, networks: Sequence[Backbone]) -> None:
    """Whether the autoencoder can be read and takes the pictures, and the networks the latents."""
    autoencoder = menu.pick("autoencoders", study.autoencoder.name).load(study.autoencoder.settings("autoencoders"))
    size = getattr(study.dataset.settings("datasets"), "image_size", None)
    if size is None:
        return
    side, rest = divmod(size, autoencoder.factor)
    if rest:
        raise InputError(f"dataset.image_size: {size} is not divisible by the autoencoder's {autoencoder.factor}")
    try:
        for network in networks:
            network.cost(side, 1)
    except ValueError as error:
        raise InputError(f"dataset.image_size: {size}: {error}") from None


def _check_pictures(study: Study) -> None:
    """Whether both splits have pictures, and the one that is evaluated enough captions."""
    wanted = {"train": 1, "held_out": 1, study.evaluation.split: study.evaluation.images}
    for split, images in wanted.items():
        found = _count(study, split, images)
        if found == 0:
            raise InputError(f"dataset: the {split} split has no picture; expected some in both splits")
        if found < images:
            raise InputError(
                f"evaluation.images: {images:,} captions asked for, but the {split} split has {found:,} images"
            )


def _check_components(study: Study) -> None:
    """Whether there are more training pictures than principal components of them that are asked for."""
    width, entry = study.conditioning.image_width, study.dataset
    if study.conditioning.image == "none":
        return
    pictures: Any = menu.pick("datasets", entry.name).load(entry.settings("datasets"), "train")
    found = len(pictures) if hasattr(pictures, "__len__") else _count(study, "train", width + 1)
    if found <= width:
        raise InputError(
            f"conditioning.image_width: {width} components of {found:,} training pictures; expected fewer than pictures"
        )


def _some_captions(study: Study) -> list[str]:
    """Those of the first training pictures."""
    entry = study.dataset
    pictures = menu.pick("datasets", entry.name).load(entry.settings("datasets"), "train")
    items = getattr(pictures, "items", None)
    if items is None:
        captions: list[str] = next(iter(pictures)).captions
        return captions
    return [item.caption for item in islice(items, BATCH)]


def _count(study: Study, split: str, most: int) -> int:
    """Pictures of a split, at most `most`; they are read, not decoded. Data sets that cannot be read so count as large enough."""
    entry = study.dataset
    pictures: Any = menu.pick("datasets", entry.name).load(entry.settings("datasets"), split)
    items = getattr(pictures, "items", None)
    return most if items is None else sum(1 for _ in islice(items, most))
