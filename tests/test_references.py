"""Networks of the literature against counts made elsewhere."""

import json

import pytest

from nas.cost.count import Cost
from nas.cost.traced import second_opinion, traced
from nas.space.references import COUNTED, REFERENCES, _on_meta, cost, count, count_by_module

# Parameters as independently counted: diffusers' own classes and the public layouts; MACs by torch's counter at 64x64 latents.
PARAMETERS = {
    "sdxl": 2_567_463_684,
    "dit-xl-2": 676_014_368,
    "pixart-alpha": 610_856_096,
    "kandinsky21": 1_228_661_768,
    "kandinsky22": 1_253_057_288,
    "kandinsky-prior": 1_022_030_080,
    "uvit-h-2": 501_537_188,
}


@pytest.mark.parametrize("name", REFERENCES)
def test_counts_on_disk_are_what_two_counters_find(name):
    tokens = REFERENCES[name].text_tokens
    setting = f"{name} {64 if REFERENCES[name].spatial else '-'} {tokens}"
    stored = Cost(**json.loads(COUNTED.read_text())[setting])
    assert stored.params == PARAMETERS[name]
    network, args, kwargs = _on_meta(name, 64, tokens)
    assert stored == traced(network, *args, **kwargs)
    assert stored.macs == second_opinion(network, *args, **kwargs)


def test_dit_by_hand():
    """DiT-XL/2 at 256 pixels, layer by layer: the published 675 M parameters and 118.6 G."""
    w, tokens = 1152, 256
    block = 4 * w * w + 4 * w + 8 * w * w + 5 * w + 6 * w * w + 6 * w
    embeddings = (16 * w + w) + tokens * w + (256 * w + w + w * w + w) + 1001 * w
    final = 2 * w * w + 2 * w + 32 * w + 32
    macs = 28 * (tokens * 12 * w * w + 2 * tokens * tokens * w + 6 * w * w)
    macs += 16 * w * tokens + 256 * w + w * w + 2 * w * w + 32 * w * tokens
    found = count("dit-xl-2", 32, 0)
    assert found.params == 28 * block + embeddings + final == 675_129_632
    assert found.macs == macs
    assert round(found.macs / 1e9, 1) == 118.6


def test_modules_add_up():
    modules = count_by_module("kandinsky-prior", 64, 77)
    assert sum(each.macs for each in modules.values()) == cost("kandinsky-prior", 64, 77).macs  # as it is counted above
