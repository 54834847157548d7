"""What each step of the table took, and what orders architectures as their ends do: python studies/search_benchmark/signals.py

Kendall's tau with prompts right of the whole slice score, with those after the training, and after that with other seeds.
"""

from pathlib import Path

import pandas as pd

from nas.analysis.statistics.agreement import tau

HERE = Path(__file__).parent


def main() -> None:
    curves = pd.read_csv(HERE / "curves.csv", dtype={"key": str}).set_index("key")
    slices, ends = (curves[curves["fraction"] == fraction] for fraction in (0, 1))
    looks = pd.read_csv(HERE / "looks.csv", dtype={"key": str}).set_index("key").loc[ends.index]
    slices = slices.loc[ends.index]
    print(
        f"{len(ends)} architectures; seconds in the mean: a look {looks['seconds'].mean():.1f}, a slice's scores "
        f"{slices['other_s'].mean():.1f}, a training {ends['train_s'].mean():.1f} and its scores {ends['other_s'].mean():.1f}"
    )
    truth = pd.read_csv(HERE / "truth.csv", dtype={"key": str}).set_index("key").loc[ends.index]
    gain = ends["prompt_accuracy"] - slices["prompt_accuracy"]
    print(f"prompts right by the training: {100 * gain.mean():+.1f} points in the mean")
    signals = {
        "look": looks["prompt_accuracy"],
        "slice": slices["prompt_accuracy"],
        "end": ends["prompt_accuracy"],
        "slice, denoising loss": -slices["denoising_loss"],
        "multiply-adds": ends["macs"],
        "parameters": ends["params"],
    }
    for name, values in signals.items():
        found = (tau(values.to_numpy(), rows["prompt_accuracy"].to_numpy()) for rows in (slices, ends, truth))
        print(f"{name:22} {{:.2f}} with the slice, {{:.2f}} with the end, {{:.2f}} with the truth".format(*found))


if __name__ == "__main__":
    main()
