"""How far networks lie apart beside two seeds of one, and whether trials have the order of the slices they start from.

python studies/scenes_trust/spread.py
"""

from pathlib import Path

import pandas as pd
from scipy.stats import kendalltau

SCORES = ("prompt_accuracy", "unseen_prompt_accuracy", "shape_accuracy", "denoising_loss")


def main() -> None:
    anchors = pd.read_csv(Path(__file__).with_name("anchors.csv"), dtype={"key": str})
    trials, slices = (anchors[anchors["kind"] == kind] for kind in ("warm", "slice"))
    for score in SCORES:
        warm = trials.pivot(index="key", columns="seed", values=score)
        start = slices.set_index("key")[score].loc[warm.index]
        mean, seeds = warm.mean(axis=1), (warm[1] - warm[0]).std() / 2**0.5
        print(
            f"{score}: {mean.min():.3f} to {mean.max():.3f}, standard deviation between networks {mean.std():.4f}, between seeds "
            f"{seeds:.4f}, ratio {mean.std() / seeds:.1f}; median gain over the slice {(mean - start).median():.3f}, tau with it "
            f"{kendalltau(mean, start).statistic:.2f}"
        )


if __name__ == "__main__":
    main()
