"""A random CLIP of a few thousand parameters, saved the way open_clip reads folders."""

import json

import torch
from safetensors.torch import save_file

from nas.assets import make_clip
from nas.networks.conditioning import clip

CONTEXT, WIDTH, EMBED, SIZE = 12, 32, 16, 16
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def save(path, own_vocabulary=True):
    """Write the folder and return it. Without its own vocabulary it uses the 49,408 tokens of CLIP's."""
    path.mkdir(parents=True)
    vocabulary = 600 if own_vocabulary else 49408
    model_cfg = {
        "embed_dim": EMBED,
        "vision_cfg": {"image_size": SIZE, "patch_size": 8, "width": WIDTH, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": vocabulary, "width": WIDTH, "heads": 2, "layers": 2},
    }
    config = {"model_cfg": model_cfg, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = clip.build(model_cfg).state_dict()
    weights["ln_final.weight"] += 0.5 * torch.arange(WIDTH) / WIDTH  # a norm that has been trained is not the identity
    save_file({name: value.contiguous() for name, value in weights.items()}, path / "open_clip_model.safetensors")
    if own_vocabulary:
        make_clip.write_vocabulary(path / clip.BPE, vocabulary)
    return path
