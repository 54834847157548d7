"""The ways of this study side by side at equal multiply-adds of a picture: differences paired by repeat.

python studies/architecture_and_plan/at_equal_cost.py
"""

from pathlib import Path

import numpy as np
import pandas as pd

from nas.analysis.statistics import contrasts

RESULTS = Path(__file__).parent / "results.csv"
AGAINST = {  # at each cost, the small network, and what stands beside it
    "small-15": ("large-10-cached", "large-5"),
    "small-10": ("large-6-cached", "large-3"),
    "small-5": ("small-10-cached", "large-2"),
}


def table(results: pd.DataFrame) -> pd.DataFrame:
    """A row a comparison: points of prompts right over the small network, interval, p of Holm's procedure over all of them."""
    wide = results.pivot(index="factor.way", columns="repeat", values="prompt_accuracy")
    pairs = [(way, small) for small, ways in AGAINST.items() for way in ways]
    weights = np.array([(wide.index == way).astype(float) - (wide.index == small) for way, small in pairs])
    found = pd.DataFrame(contrasts.tested(wide.to_numpy(), weights, goal="maximise"))
    points = found[["estimate", "low", "high"]].mul(100).round(1)
    return pd.DataFrame(pairs, columns=["way", "against"]).join(points).join(found[["p_holm", "verdict"]].round(3))


if __name__ == "__main__":
    print(table(pd.read_csv(RESULTS)).to_string(index=False))
