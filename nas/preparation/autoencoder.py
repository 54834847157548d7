"""An autoencoder of a study's own pictures: the shipped one, trained on with them, or a new one where none ships; and how well
any copies pictures of them."""

from __future__ import annotations

import json

from torch import Tensor

from nas import menu
from nas.networks.autoencoders import Autoencoder
from nas.preparation import lessons
from nas.training import autoencoders
from nas.training.autoencoders import Reconstruction
from nas.training.decoders import psnr
from nas.trial.bench import Bench
from nas.weights import worlds
from nas.weights.parts import Part

POOR_DB = (
    20.0  # below it copies are blurred to the eye (assumption; the shipped one has 22 dB on emoji that it never saw)
)


def make(part: Part, bench: Bench, minutes: float, say: lessons.Say) -> None:
    """Train it, or go on, and write it."""
    entry = bench.study.autoencoder
    module, settings = menu.pick("autoencoders", entry.name), entry.settings("autoencoders")
    seen, _ = lessons.pictures(bench.images("train"))
    made = lessons.trained(
        lambda updates: Reconstruction(module.start(settings, seen), updates), seen, part.path, minutes, part.role, say
    )
    made.averaged()
    quality = {"images": made.images_seen, "pictures": len(seen), "start": module.origin(settings)}
    about = {
        "made_by": "nas prepare",
        "made_for": worlds.own(bench.study.resolved())[-1],
        "quality": json.dumps(quality),
        "licence": "that of the pictures it was trained on",
    }
    assert isinstance(made, Reconstruction)
    autoencoders.write(made.model, seen, part.path, about)
    lessons.done(part.path)


def copies_db(autoencoder: Autoencoder, pictures: Tensor) -> float:
    """Mean PSNR in dB of the copies of pictures (N, 3, H, W) in [-1, 1]."""
    return psnr(autoencoder.decode(autoencoder.encode(pictures)).cpu(), pictures)


def codebook(autoencoder: Autoencoder, pictures: Tensor) -> str | None:
    """How much of its codebook pictures (N, 3, H, W) use, in words; None where it has none."""
    counts = autoencoder.used(pictures)
    if counts is None:
        return None
    shares = counts[counts > 0] / counts.sum()
    perplexity = float((-shares * shares.log()).sum().exp())  # so many entries, were all used alike
    return f"codebook: {len(shares):,} of {len(counts):,} entries stand in them, perplexity {perplexity:,.0f}"


def told(decibels: float, count: int) -> str:
    """What that means, and what to do where it is bad."""
    line = f"copies of {count:,} held-out pictures: PSNR {decibels:.1f} dB"
    if decibels >= POOR_DB:
        return line
    return (
        f"{line}, below {POOR_DB:g}: they are blurred, and so is all that is drawn through it; remove the file and prepare "
        "again with more minutes for --autoencoder, or name a pretrained one under autoencoder.path"
    )
