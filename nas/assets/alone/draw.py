"""Draws with the networks of this folder, without nas: python draw.py "a caption" "another" --seed 1 --out drawn.png

It needs numpy, Pillow and the networks' runtime. draw.json has the plan unrolled: the latents that a step asks the network about
are a sum, by the step's weights, of the noise and of all that the network predicted before.
"""

import argparse
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image
from runtime import load
from tokenizer import tokenise

HERE = Path(__file__).parent
ABOUT = json.loads((HERE / "draw.json").read_text(encoding="utf-8"))
GUIDANCE, NETWORKS = ABOUT["sampling"]["guidance"], next(iter(ABOUT["networks"]))


def noise(count, seed):
    """What pictures start from, and what some plans add later on: arrays (count, C, H, W)."""
    pictures = [np.random.RandomState([row, *divmod(seed % 2**64, 2**32)]) for row in range(count)]
    first = np.float32([stream.standard_normal(ABOUT["latents"]) for stream in pictures])
    words = [np.frombuffer(blake2b(row.tobytes(), digest_size=16).digest(), "<u4") for row in first]
    streams = [np.random.RandomState(seed) for seed in words]
    more = range(ABOUT["fresh_noise"])
    return [first, *(np.float32([stream.standard_normal(ABOUT["latents"]) for stream in streams]) for _ in more)]


def draw(captions, seed=0, guidance=GUIDANCE, networks=NETWORKS):
    """Pictures (B, H, W, 3) of numbers in [-1, 1]."""
    files, steps = ABOUT["networks"][networks], ABOUT["steps"]
    network = {
        name: load(HERE / files[name]) for name in {"text_encoder", "decoder", *(step["network"] for step in steps)}
    }
    guided = guidance != 1 and any(step["guided"] for step in steps)
    branches = [captions, [""] * len(captions)] if guided else [captions]
    texts = [network["text_encoder"](*tokenise(read)) for read in branches]
    made, handed_on = noise(len(captions), seed), ({}, {})

    def predicted(step, branch):  # with the captions, or without
        latents, times = np.tensordot(step["weights"], made, 1), np.full(len(captions), step["time"], np.int64)
        over = (handed_on[branch][name] for name in step["taken"])
        prediction, *kept = network[step["network"]](np.float32(latents), times, *texts[branch], *over)
        handed_on[branch].update(zip(step["kept"], kept, strict=True))
        return prediction

    for step in steps:
        prediction = predicted(step, 0)
        if guided and step["guided"]:
            without = predicted(step, 1)
            prediction = without + guidance * (prediction - without)
        made.append(prediction)
    clean = np.float32(np.tensordot(ABOUT["last"], made, 1))
    return network["decoder"](clean)[0].clip(-1, 1).transpose(0, 2, 3, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("captions", nargs="+")
    parser.add_argument("--networks", choices=list(ABOUT["networks"]))
    for option, kind in (("--seed", int), ("--guidance", float)):
        parser.add_argument(option, type=kind)
    parser.add_argument("--out", type=Path, default="drawn.png")
    asked = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    out = asked.pop("out")
    Image.fromarray(np.uint8(np.hstack(draw(**asked)) * 127.5 + 128)).save(out)
