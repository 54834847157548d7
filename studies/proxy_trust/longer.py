"""Do warm trials order architectures as warm trainings of ten times their length do? Over the anchors that both tables hold.

    nas trust studies/emoji --long 0 --set training.images_seen=40960 --out studies/proxy_trust/longer
    python studies/proxy_trust/longer.py

Prints Kendall's tau with 95 % bootstrap intervals. Brief trials have another seed than the longer ones: they share their start.
"""

from pathlib import Path

import pandas as pd

from nas.analysis.statistics import agreement

HERE = Path(__file__).parent
TARGETS = {"fid_efficientnet_lite0": -1, "clip_score": 1, "caption_accuracy": 1, "denoising_loss": -1}
COSTS = ("params", "macs", "grad_norm")


def rows(folder: Path, kind: str, seed: int = 0) -> pd.DataFrame:
    """One row an architecture."""
    table = pd.read_csv(folder / "anchors.csv", dtype={"key": str})
    return table[(table["kind"] == kind) & (table["seed"] == seed)].set_index("key")


def main() -> None:
    longer = rows(HERE / "longer", "warm")
    brief, zero_cost = rows(HERE, "warm", seed=1), rows(HERE, "zero_cost")
    signals = {"warm trial": brief, "slice": rows(HERE, "slice"), "long training from scratch": rows(HERE, "long")}
    for target, sign in TARGETS.items():
        truth = longer[target] * sign
        scores = {name: table[target] * sign for name, table in signals.items()}
        scores |= {name: zero_cost[name] for name in COSTS}
        for name, values in scores.items():
            both = pd.concat([values, truth], axis=1, join="inner", keys=["signal", "truth"])
            found = agreement.agreement(name, target, both["signal"].to_numpy(), both["truth"].to_numpy())
            print(f"{target:24}{name:28}{found.n:3}  {found.tau:5.2f} [{found.tau_low:.2f}, {found.tau_high:.2f}]")
        gain = (longer[target] - brief[target].reindex(longer.index)).median()
        print(f"{target:24}median change from brief to longer: {gain:.4g}")


if __name__ == "__main__":
    main()
