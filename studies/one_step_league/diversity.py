"""Do pictures of one caption differ? Of the league's networks, and of their base in ten steps.

    nas run studies/one_step_league
    python studies/one_step_league/diversity.py [RUN]

A caption leaves open where its object lies. Every network draws 8 pictures of each of 32 captions, from the same noise.
`place` is the standard deviation, in pixels, of the object's centre over the pictures of a caption, both directions together,
as a mean over captions; pictures without exactly one object are left out. A generator that has one picture for a caption has 0.
Writes diversity.csv, a row for each network, beside this file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from nas.datasets.scenes.judge import look
from nas.datasets.scenes.world import RADII_ALONE
from nas.diffusion import solvers
from nas.networks.conditioning import Text
from nas.study import launch
from nas.study.sweep import Model, networks_of, schedule_of

CAPTIONS, PICTURES, SEED = 32, 8, 11
REPEATS = 3
TABLE = Path(__file__).with_name("diversity.csv")


@torch.no_grad()
def pictures(model: Model) -> Iterator[Tensor]:
    """Of each caption, its pictures (PICTURES, 3, S, S)."""
    bench = model.bench
    _, text, noise = bench.drawn
    network, schedule = model.load(), schedule_of(bench)
    generator = torch.Generator().manual_seed(SEED)
    for row in range(CAPTIONS):
        fresh = torch.randn((PICTURES, *noise.shape[1:]), generator=generator)
        same = Text(*(one[row : row + 1].expand(PICTURES, *one.shape[1:]) for one in text))
        drawn = solvers.sample(network, bench.study.sampling, schedule, fresh, same, bench.train_data.null)
        yield bench.autoencoder.decode(drawn)


def place(drawn: Tensor) -> tuple[float | None, int]:
    """The spread of the object's centre over pictures of one caption, and in how many there is exactly one."""
    seen = [look(picture.numpy(), RADII_ALONE).things for picture in drawn]
    centres = np.array([things[0].centre for things in seen if len(things) == 1])
    spread = float(np.sqrt(centres.var(axis=0, ddof=1).sum())) if len(centres) > 1 else None
    return spread, len(centres)


def row(model: Model) -> dict[str, object]:
    """What is known of one network."""
    spreads, counts = zip(*map(place, pictures(model)), strict=True)
    known = [spread for spread in spreads if spread is not None]
    return {
        "model": model.name,
        "repeat": model.repeat,
        "steps": model.bench.study.sampling.steps,
        "place": round(float(np.mean(known)), 3) if known else None,
        "one_object": sum(counts) / (CAPTIONS * PICTURES),
    }


def main(path: str = "runs/one_step_league") -> None:
    rows = []
    for model in networks_of(launch.find_run(Path(path)), (), REPEATS):
        rows.append(row(model))
        print(*rows[-1].values(), sep="\t", flush=True)
    pd.DataFrame(rows).astype({"repeat": "Int64"}).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
