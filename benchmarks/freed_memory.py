"""What a trial costs when glibc keeps freed memory, as workers have it (nas.workers.preload), and when it gives it back.

    python benchmarks/freed_memory.py [--repeats 3]

One warm trial of the proxy of studies/emoji, 1,024 images and 256 pictures scored, in processes that differ in their environment
alone and take turns. CPU seconds (user and system) and page faults, medians.
"""

import argparse
import dataclasses
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

STUDY = Path(__file__).parents[1] / "studies" / "emoji" / "study.yaml"
KEPT = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


def trial(cache: Path) -> dict[str, float]:
    """What this process spends on one trial; on the second, when everything is loaded."""
    from nas.settings import study_file
    from nas.space.search_space import SearchSpace
    from nas.trial import rung

    study = study_file.load(STUDY)
    space = SearchSpace.load(study.space)
    architecture = space.architecture(space.sample(random.Random(1))).to_dict()
    rung.start_worker(study, cache)
    with tempfile.TemporaryDirectory() as folder:
        job = rung.Job(0, architecture, seed=1, rung=0, images_seen=1024, last=True, folder=Path(folder))
        rung.run_rung(job)
        before = resource.getrusage(resource.RUSAGE_SELF)
        rung.run_rung(dataclasses.replace(job, seed=2))
        after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user_s": after.ru_utime - before.ru_utime,
        "system_s": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "peak_mib": after.ru_maxrss / 1024,
    }


def apart(cache: Path, kept: bool) -> dict[str, float]:
    """The same in a process of its own."""
    from nas.workers.preload import ENVIRONMENT

    environment = {name: value for name, value in os.environ.items() if name not in KEPT}
    environment |= {name: value for name, value in ENVIRONMENT.items() if kept or name not in KEPT}
    told = subprocess.run(
        [sys.executable, __file__, "--cache", str(cache)],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(told.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cache:
        return print(json.dumps(trial(given.cache)))
    with tempfile.TemporaryDirectory() as cache:
        apart(Path(cache), kept=True)  # makes the caches
        turns = [(apart(Path(cache), kept=False), apart(Path(cache), kept=True)) for _ in range(given.repeats)]
    for name, found in zip(("given back", "kept"), zip(*turns, strict=True), strict=True):
        medians = {key: statistics.median(each[key] for each in found) for key in found[0]}
        print(f"{name:11}" + "".join(f"{key} {value:12,.1f}   " for key, value in medians.items()))
    ratios = [(a["user_s"] + a["system_s"]) / (b["user_s"] + b["system_s"]) for a, b in turns]
    print(f"CPU time given back / kept: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
