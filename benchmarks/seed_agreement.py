"""How much signal a brief trial of the quickstart carries: Kendall's tau between two seeds.

    python benchmarks/seed_agreement.py --out studies/quickstart/seed_agreement.csv [--architectures 12]

The same random architectures within budget are trained as the study trains them, twice with different seeds, started from
the supernet and from scratch; and scored as slices without any training. Rows already in the file are not computed again.
Tau is given with a 95 % bootstrap interval over architectures (2,000 resamples). Higher is better for none of this: tau
near 1 says a second seed would have ranked the architectures the same, not that a long training would.
"""

import argparse
import csv
import random
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from nas import preload, settings, trial
from nas.settings import Study
from nas.space import SearchSpace
from nas.study import over_budget, trial_seed
from nas.workers import Workers, default_count

STUDY = Path("studies/quickstart/study.yaml")
KINDS = {"slice": ("supernet", 0, 1), "warm": ("supernet", 1, 2), "scratch": ("scratch", 1, 2)}  # init, share, seeds
COLUMNS = ("fid_efficientnet_lite0", "clip_score", "caption_accuracy", "denoising_loss")


def architectures(study: Study, count: int) -> list[dict]:
    """Random members within budget."""
    space, rng, found = SearchSpace.load(study.space), random.Random(2026), {}
    while len(found) < count:
        config = space.architecture(space.sample(rng))
        cost = asdict(config.cost(study.deploy.latent_size, study.deploy.text_tokens))
        if not over_budget(cost, study.budget):
            found[config.key] = {
                "key": config.key,
                "plain": config.to_dict(),
                **{n: cost[n] for n in ("params", "macs")},
            }
    return list(found.values())


def measure(kind: str, chosen: list[dict], done: set[tuple[str, str, int]], out: Path) -> None:
    """Append one row per architecture and seed."""
    init, share, seeds = KINDS[kind]
    study = settings.load(STUDY, [f"training.init={init}"])
    jobs = [(a, s) for s in range(seeds) for a in chosen if (kind, a["key"], s) not in done]
    workers = Workers(default_count(), study, Path("runs/.cache"))
    images = round(share * study.training.images_seen)
    with tempfile.TemporaryDirectory() as folder:
        waiting, left = list(enumerate(jobs)), len(jobs)
        while left:
            while workers.free and waiting:
                number, (architecture, repeat) = waiting.pop(0)
                place = Path(folder) / str(number)
                place.mkdir()
                seed = trial_seed(study.seed, architecture["key"], repeat)
                job = trial.Job(number, architecture["plain"], seed, 0, images, True, place)
                workers.submit((number, 0), trial.run_rung, job)
            for (number, _), future in workers.finished(5.0):
                left -= 1
                architecture, repeat = jobs[number]
                append(out, kind, architecture, repeat, future.result()["rung"])
    workers.stop()


def append(out: Path, kind: str, architecture: dict, repeat: int, rung: dict) -> None:
    row = {"kind": kind, "key": architecture["key"], "seed": repeat, "images_seen": rung["images_seen"]}
    row |= {name: architecture[name] for name in ("params", "macs")} | rung["metrics"]
    row |= {name: round(rung["timings"][name], 2) for name in ("train_s", "sample_s", "score_s")}
    new = not out.exists()
    with out.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(kind, architecture["key"], repeat, {k: round(v, 4) for k, v in rung["metrics"].items()}, flush=True)


def tau(a: np.ndarray, b: np.ndarray) -> str:
    """Kendall's tau-b with its bootstrap interval."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(a), len(a)) for _ in range(2000)]
    values = [kendalltau(a[rows], b[rows]).statistic for rows in drawn]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return f"{kendalltau(a, b).statistic:.2f} [{low:.2f}, {high:.2f}]"


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison, one column per score."""
    rows = {}
    wide = {(k, s): g.set_index("key").sort_index() for (k, s), g in frame.groupby(["kind", "seed"])}
    for name, (x, y) in {
        "warm, seed 0 vs seed 1": (("warm", 0), ("warm", 1)),
        "scratch, seed 0 vs seed 1": (("scratch", 0), ("scratch", 1)),
        "untrained slice vs warm (seed 0)": (("slice", 0), ("warm", 0)),
        "scratch (seed 0) vs warm (seed 0)": (("scratch", 0), ("warm", 0)),
    }.items():
        if x in wide and y in wide and len(wide[x]) == len(wide[y]):
            rows[name] = {c: tau(wide[x][c].to_numpy(), wide[y][c].to_numpy()) for c in COLUMNS}
    if ("warm", 0) in wide:
        warm = wide["warm", 0]
        rows["MACs vs warm (seed 0)"] = {c: tau(warm["macs"].to_numpy(), warm[c].to_numpy()) for c in COLUMNS}
    return pd.DataFrame(rows).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--architectures", type=int, default=12)
    arguments = parser.parse_args()
    chosen = architectures(settings.load(STUDY), arguments.architectures)
    for kind in KINDS:
        frame = pd.read_csv(arguments.out) if arguments.out.exists() else pd.DataFrame(columns=["kind", "key", "seed"])
        done = set(frame[["kind", "key", "seed"]].itertuples(index=False, name=None))
        measure(kind, chosen, done, arguments.out)
    print(table(pd.read_csv(arguments.out)).to_string())


if __name__ == "__main__":
    preload.start()
    main()
