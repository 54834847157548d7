"""How cheap may a look at a slice be? Fewer pictures and fewer solver steps, by their order of the slices.

    python benchmarks/looks.py                          # the quickstart's study; some 20 minutes of a core
    python benchmarks/looks.py --pictures 24,48 --steps 10

Random members within the budget are scored as the study scores them, then with fewer pictures and steps. A line is one such
look: seconds of CPU, and for each score that a picture decides Kendall's tau with that score of the whole scoring.
"""

from __future__ import annotations

import argparse
import random
import time
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from nas.analysis.statistics.agreement import tau
from nas.diffusion.schedule import Settings, noise_schedule
from nas.metrics import scores
from nas.networks.backbones import Backbone
from nas.settings import study_file
from nas.space.search_space import SearchSpace
from nas.trial import supernet_training
from nas.trial.bench import Bench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("studies/quickstart"))
    parser.add_argument("--members", type=int, default=32)
    parser.add_argument("--pictures", type=numbers, default=[24, 48, 96])
    parser.add_argument("--steps", type=numbers, default=[3, 4, 6, 10])
    parser.add_argument("--out", type=Path, default=Path("runs/looks.csv"), help="every look, a row each")
    arguments = parser.parse_args()
    study = study_file.load(arguments.study)
    bench = Bench(study, Path("runs/.cache"))
    assert isinstance(study.space, str)
    members = random.Random(0).sample(supernet_training.pool(study, SearchSpace.load(study.space)), arguments.members)
    rows = []
    for number, member in enumerate(members):
        rows += [{"member": number, **row} for row in looks(bench, member, arguments.pictures, arguments.steps)]
        print(f"{number + 1} of {len(members)}", flush=True)
    frame = pd.DataFrame(rows)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(arguments.out, index=False)
    print(agreement(frame, [column for column in frame if column not in ("member", "pictures", "steps", "seconds")]))


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


@torch.no_grad()
def looks(bench: Bench, member: Backbone, several: list[int], ways: list[int]) -> list[dict[str, float]]:
    """The study's own scoring, and every cheaper one."""
    schedule = dict(noise_schedule(Settings()).config)
    network = bench.network(bench.scaled(member.to_dict()), seed=0).eval()
    own = (len(bench.drawn[0]), bench.study.sampling.steps)
    rows = []
    for pictures, steps in [own, *product(several, ways)]:
        plan = bench.variant({"sampling.steps": steps})
        began = time.process_time()
        found = scores(bench.metrics, bench.captioned(plan.draw(network, schedule, pictures)))
        rows.append({"pictures": pictures, "steps": steps, "seconds": time.process_time() - began, **found})
    return rows


def agreement(frame: pd.DataFrame, columns: list[str]) -> str:
    """Each look's seconds, and tau with the study's own scoring, the first of each member."""
    by_look = {key: part.sort_values("member") for key, part in frame.groupby(["pictures", "steps"], sort=False)}
    (_, own), *cheaper = by_look.items()
    lines = []
    for (pictures, steps), part in cheaper:
        taus = {column: tau(part[column].to_numpy(), own[column].to_numpy()) for column in columns}
        lines.append({"pictures": pictures, "steps": steps, "seconds": part["seconds"].median(), **taus})
    return f"own scoring: {own['seconds'].median():.1f} s\n{pd.DataFrame(lines).round(2).to_string(index=False)}"


if __name__ == "__main__":
    main()
