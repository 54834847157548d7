"""Do the shipped base's gradients at different times agree?

    python studies/deme/gradient_cosine.py [STUDY]

The times are cut into 8 equal ranges. A range's gradient is that of the denoising loss at times spread over it, of IMAGES
training pictures with fixed noise, the same for all ranges. Writes gradient_cosine.csv beside this file, a row for each pair:

cosine     of the two gradients, of the same pictures and noise, so that what is drawn by chance is alike in both;
apart      one range's gradient of half of the pictures against the other's of the other half, the mean of both ways: for a
           range with itself it says how much of a gradient is the range's, not chance;
corrected  `apart` over the square root of both ranges' own, an estimate of the cosine without chance; none where an own one
           is not above 0.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from nas.diffusion.gradients import cosine, gradient
from nas.diffusion.schedule import Settings, noise_schedule
from nas.networks.conditioning import Text
from nas.settings import study_file
from nas.trial import base_model
from nas.trial.bench import Bench

RANGES, IMAGES, BATCH = 8, 1024, 64
FOLDER = Path(__file__).parent


def gradients(bench: Bench) -> Tensor:
    """Of each range and each half of the pictures, float64 (RANGES, 2, P)."""
    network, schedule, lesson = (
        base_model.network(bench).requires_grad_(True),
        noise_schedule(Settings()),
        bench.lesson(IMAGES),
    )
    noise, steps = lesson.noise(), int(schedule.config["num_train_timesteps"])
    found = []
    for index in range(RANGES):
        low, wide = steps * index // RANGES, steps // RANGES
        time = low + (torch.arange(IMAGES) * 7919) % wide  # every time of the range about as often, in each batch
        parts = []
        for rows in torch.arange(IMAGES).split(BATCH):
            text = Text(lesson.text.tokens[rows], lesson.text.pooled[rows])
            parts.append(gradient(network, schedule, lesson.latents[rows], text, time[rows], noise[rows]).double())
        half = len(parts) // 2
        found.append(torch.stack([torch.stack(some).mean(0) for some in (parts[:half], parts[half:])]))
        print(f"times {low} to {low + wide - 1}", flush=True)
    return torch.stack(found)


def table(found: Tensor) -> pd.DataFrame:
    """A row for each pair of ranges, each once."""
    whole, count = found.mean(1), len(found)
    apart = [[(cosine(one[0], other[1]) + cosine(one[1], other[0])) / 2 for other in found] for one in found]
    rows = []
    for a in range(count):
        for b in range(a, count):
            own = apart[a][a] * apart[b][b]
            known = apart[a][a] > 0 and apart[b][b] > 0
            rows.append(
                {
                    "range_a": a,
                    "range_b": b,
                    "cosine": round(cosine(whole[a], whole[b]), 4),
                    "apart": round(apart[a][b], 4),
                    "corrected": round(apart[a][b] / own**0.5, 4) if known else None,
                }
            )
    return pd.DataFrame(rows)


def main(path: str = str(FOLDER)) -> None:
    bench = Bench(study_file.load(Path(path)), Path("runs/.cache"))
    found = table(gradients(bench))
    found.to_csv(FOLDER / "gradient_cosine.csv", index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
