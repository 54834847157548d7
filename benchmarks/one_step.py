"""What an update of every objective costs beside a denoising update of the same network, in one run.

    python benchmarks/one_step.py [--updates 4] [--repeats 5] [--only TEXT] [--divisor 16]

Every objective of the menu but those of tokens trains the proxy of the MobileDiffusion preset on the same random
latents and text, of the scenes' shapes, in batches of 32 and one thread, through `nas.training.loop.train`; it starts
from its teacher. An objective stands there with its default settings, and once more for each choice among its settings
that changes its passes.

passes     of one image, in forwards of the network: the operations of an update and of the critics' turns that belong to it,
           losses and gradients, by torch's counter (`nas.cost.traced.flops`), over those of a forward; and what the
           objective declares. `*`: off by more than 10 %, as `add` is by the image decoder and the feature network,
           which it does not count. First layers and the projections of the text take no gradient to their input, so
           that denoising is a little below 3.
ms         CPU time of an update over its images, which other programs on the machine disturb less than wall time. The runs
           alternate; medians, and the median of the pairwise ratios to denoising. What does not grow with the passes
           (AdamW, averages, data) is in it.
in memory  networks between two updates: weights of the generator, the critics and the teacher, AdamW's moments of what is
           trained, and averages (one of them the training's own). No gradients, no activations.

Measured with `--updates 2 --repeats 3` on two cores shared with much other work (passes and MiB are exact, times rough):

    objective              passes  declared   ratio   x denoising   MiB
    denoising                2.73      3.00    0.91          1.00  25.1
    add                     47.24      5.00    9.45*         4.67  55.2
    add, none               39.60      4.00    9.90*         4.44  55.2
    ladd                     5.87      7.00    0.84*         1.60  31.4
    ladd, none               4.87      6.00    0.81*         1.48  31.4
    ufogen                   7.69      8.50    0.90          1.98  43.9
    ufogen, distill          8.69      9.50    0.91          2.48  50.2
    ufogen, ema_distill      8.69      9.50    0.91          2.80  50.2

At 8 x 8 latents the bottleneck has 4 positions beside 20 words, whose projections cost a quarter of the network and take no
gradient to their input; and its first half is 0.31 of a pass, not the half that LADD's declared passes take it for.
"""

import argparse
import copy
import math
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from training import data  # benchmarks/training.py

from nas import menu
from nas.cost.traced import flops
from nas.networks.autoencoders import kl
from nas.networks.averages import Average
from nas.networks.backbones import Proxy
from nas.networks.backbones.unet import presets
from nas.objectives import Pictures
from nas.settings.training import Training
from nas.training.batches import Batches
from nas.training.encoded import EncodedSet
from nas.training.loop import DenoiserTraining, train

SETTINGS = Training(batch=32, init="base")
SIZE = 512  # pictures
POOLED = 128  # width of a pooled caption
COUNTED = 8  # updates whose operations are counted: some objectives draw by lot what they compute


def network(divisor: int) -> nn.Module:
    torch.manual_seed(0)
    proxy = Proxy(width_divisor=divisor, latent_channels=8, text_width=96, pooled_width=POOLED)
    return presets()["mobilediffusion"].scaled(proxy).build()


def made(name: str, options: dict[str, Any], divisor: int) -> Any:
    """An objective whose generator starts as its teacher. Raises whatever keeps it from being built."""
    module, generator = menu.pick("objectives", name), network(divisor)
    teacher = copy.deepcopy(generator).requires_grad_(False) if "teacher" in module.Objective.requires else None
    decoder = kl.load(kl.Settings(shipped="scenes")).decoder().requires_grad_(False)
    given = {"pictures": Pictures(decoder, POOLED)} if "pictures" in module.Objective.requires else {}
    return module.Objective(generator, teacher, module.Settings(**options), **given)


def variants(divisor: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Denoising first; every other objective with its defaults, and with each choice that changes its passes."""
    for name in sorted(menu.names("objectives"), key=lambda name: name != "denoising"):
        if "tokens" in menu.pick("objectives", name).Objective.requires:
            continue  # the UNet draws no tokens
        passes = made(name, {}, divisor).passes
        yield name, {}
        for field, info in menu.pick("objectives", name).Settings.model_fields.items():
            for value in getattr(info.annotation, "__args__", ()) if _is_choice(info.annotation) else ():
                if made(name, {field: value}, divisor).passes != passes:
                    yield name, {field: value}
    yield "instaflow", {"reflow_updates": COUNTED // 2}  # with its defaults no update counted is of its second task


def _is_choice(annotation: Any) -> bool:
    return getattr(getattr(annotation, "__origin__", None), "_name", "") == "Literal"


def encoded() -> EncodedSet:
    """With the noise that pairs start from."""
    found = data(SIZE)
    noise = torch.randn(found.latents.shape, generator=torch.Generator().manual_seed(1))
    return EncodedSet(found.latents, found.caption_of, found.captions, found.tokens, found.pooled, noise)


def turns(objective: Any, update: int) -> list[Any]:
    """The losses of an update, in order."""
    critics = objective.critics.values()
    played = [one.loss for one in critics for _ in range(one.updates if update % one.every == 0 else 0)]
    return [*played, objective.generator_loss]


def passes(objective: Any, pictures: EncodedSet) -> float:
    """Measured, in the mean over a number of updates in which every critic has its turns."""
    updates = math.lcm(COUNTED, *(critic.every for critic in objective.critics.values()))
    total, whole = 0, 0
    for batch in Batches(pictures, SETTINGS, 0, 0, updates):
        for loss in turns(objective, batch.update):
            total += flops(lambda loss=loss, batch=batch: loss(batch).backward())
        objective.after_step()
        time = torch.zeros(len(batch.latents), dtype=torch.int64)
        with torch.no_grad():
            whole += flops(lambda time=time, batch=batch: objective.generator(batch.latents, time, batch.text))
    return total / whole


def memory(module: DenoiserTraining) -> tuple[str, float]:
    """The networks that an objective holds, and MiB of all that stays between two updates."""
    names = [
        "average" if isinstance(child, Average) else name
        for name, child in module.objective.named_children()
        if any(True for _ in child.state_dict())
    ]
    tensors = [*module.objective.parameters(), *module.objective.buffers(), *module.ema.buffers()]
    for adam in module.adam.values():
        tensors += [value for state in adam.state.values() for value in state.values()]
    size = sum({one.data_ptr(): one.numel() * one.element_size() for one in tensors}.values())
    return " + ".join([*names, "average"]), size / 2**20


def seconds_per_image(module: DenoiserTraining, pictures: EncodedSet, updates: int) -> float:
    """CPU time of further updates; the number is rounded up so that the critics have their share."""
    updates = math.lcm(updates, *(critic.every for critic in module.objective.critics.values()))
    began = time.process_time()
    train(module, pictures, 0, (module.step + updates) * SETTINGS.batch)
    return (time.process_time() - began) / updates / SETTINGS.batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=4, help="a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="objectives whose name contains this; denoising always")
    parser.add_argument("--divisor", type=int, default=16, help="of the network's widths")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pictures, modules, counted = encoded(), {}, {}
    for name, options in variants(arguments.divisor):
        if name == "denoising" or arguments.only in name:
            title = ", ".join([name, *map(str, options.values())])
            counted[title] = passes(made(name, options, arguments.divisor), pictures)
            modules[title] = DenoiserTraining(made(name, options, arguments.divisor), SETTINGS)
    measured: dict[str, list[float]] = {title: [] for title in modules}
    for repeat in range(arguments.repeats + 1):
        for title, module in modules.items():
            seconds = seconds_per_image(module, pictures, arguments.updates)
            if repeat:  # the first round warms up, and makes the optimisers' moments
                measured[title].append(seconds)
    print(
        f"{'objective':<28}{'passes':>8}{'declared':>10}{'ratio':>8}{'ms / image':>12}{'x denoising':>13}{'MiB':>7}  in memory"
    )
    for title, module in modules.items():
        declared, values = module.objective.passes_of(COUNTED), measured[title]
        ratio = counted[title] / declared
        times = statistics.median(v / b for v, b in zip(values, measured["denoising"], strict=True))
        networks, size = memory(module)
        print(
            f"{title:<28}{counted[title]:>8.2f}{declared:>10.2f}{ratio:>7.2f}{' ' if abs(ratio - 1) <= 0.1 else '*'}"
            f"{1000 * statistics.median(values):>12.2f}{times:>13.2f}{size:>7.1f}  {networks}"
        )


if __name__ == "__main__":
    main()
