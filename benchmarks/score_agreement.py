"""How alike two scores order the cells, or the trials, of studies that are committed: Kendall's tau, means over repeats.

    python benchmarks/score_agreement.py

What docs/how-to/metrics.md shows. A distance and a loss are better when smaller, so that agreement with an accuracy is below 0.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pandas as pd
from scipy.stats import kendalltau

STUDIES = Path(__file__).parents[1] / "studies"
ACCURACIES = ("prompt_accuracy", "clip_score", "caption_accuracy", "denoising_loss")
DISTANCES = ("fid_", "kid_", "mind_")
FEWEST = 5  # cells or trials of which a tau is told


def agreements(path: Path) -> list[tuple[str, str, int, float]]:
    """Two scores, the cells that have both, and tau; empty for a table that is none of a run."""
    table = pd.read_csv(path)
    if "state" not in table:
        return []
    trained = table[table["state"] == "complete"]
    if "cell" in trained and trained["cell"].notna().any():
        trained = trained.groupby("cell").mean(numeric_only=True)
    scores = [name for name in map(str, trained) if name in ACCURACIES or name.startswith(DISTANCES)]
    found = []
    for one, other in combinations(scores, 2):
        both = trained[[one, other]].dropna()
        if len(both) >= FEWEST:
            found.append((one, other, len(both), float(kendalltau(both[one], both[other]).statistic)))
    return found


if __name__ == "__main__":
    for table in sorted(STUDIES.glob("*/*.csv")):
        for one, other, count, tau in agreements(table):
            print(f"{table.relative_to(STUDIES)!s:<36}{count:>4}  {one:<28}{other:<28}{tau:>6.2f}")
