"""What a plan that keeps units saves on each runtime of an export: the time of a drawing over that of one that keeps nothing.

    nas export runs/quickstart --plan fast.yaml --format safetensors,onnx --to fast
    python benchmarks/caching_runtimes.py fast

One picture on one thread, processor time, both plans in turn: the median of the ratios.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from nas.deploy import drawer

REPEATS = 15


def ratios(drawing: drawer.Drawer) -> list[float]:
    """Of drawings by the plan and without its cache, one after the other."""
    caption = drawing.encoder.examples[:1]
    text, null = drawing.encode(caption), drawing.encode([""])
    noise = torch.randn(1, *drawing.latents, generator=torch.Generator().manual_seed(0))

    def seconds(plan: drawer.Plan) -> float:
        began = time.process_time()
        drawing.sample(noise, text, plan, null)
        return time.process_time() - began

    plain = drawing.plan.model_copy(update={"cache": None})
    seconds(drawing.plan), seconds(plain)
    return [seconds(drawing.plan) / seconds(plain) for _ in range(REPEATS)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path)
    torch.set_num_threads(1)
    for folder in parser.parse_args().exports:
        for runtime in drawer.runtimes(folder):
            found = ratios(drawer.load(folder, runtime, "fp32", 1))
            print(f"{folder} {runtime}: {100 * statistics.median(found):.0f} % of the time without a cache")
