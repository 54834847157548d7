"""Trains the two shipped CLIP models on the emoji set: `python -m nas.assets.make_clip --role judge|text`.

`judge` scores generated pictures (CLIP score, caption accuracy) and never conditions anything: EfficientNet-Lite0 from its
ImageNet weights, fine-tuned at 64 px, with a small text tower. `text` is the frozen text encoder of `conditioning`; only
its text tower is kept, trained against the locked ImageNet features of the pictures (LiT, Zhai et al. 2022), which costs
minutes. Different seeds. Both use the first merges of CLIP's own byte-pair vocabulary, so embeddings stay small.
`--hold-out-style fluent` trains on the other styles only, to measure retrieval on a style never seen.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from nas.datasets.emoji import SHARD
from nas.disk.decoding import decode
from nas.disk.shards import samples
from nas.networks import efficientnet
from nas.networks.conditioning import clip
from nas.training.judges import augmented

ROLES: dict[str, dict[str, Any]] = {
    "judge": {"seed": 11, "vocabulary": 3072, "text_width": 128, "layers": 3, "locked": False},
    "text": {"seed": 23, "vocabulary": 3072, "text_width": 96, "layers": 4, "locked": True},
}
CONTEXT = 32
EMBED = 128
VIEWS = 4  # augmented views of each picture whose features a locked image tower computes once


def records() -> tuple[Tensor, list[dict[str, Any]]]:
    """Every picture (N, 3, 64, 64) in [-1, 1] and its record."""
    found = [(decode(sample["webp"], 64), json.loads(sample["json"])) for _, sample in samples(SHARD)]
    return torch.stack([image for image, _ in found]), [record for _, record in found]


def configuration(role: str) -> dict[str, Any]:
    """open_clip's model_cfg."""
    chosen = ROLES[role]
    return {
        "embed_dim": EMBED,
        "vision_cfg": {
            "timm_model_name": efficientnet.NAME,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": chosen["vocabulary"],
            "width": chosen["text_width"],
            "heads": 4,
            "layers": chosen["layers"],
        },
    }


def write_vocabulary(path: Path, size: int) -> None:
    """The first merges of CLIP's vocabulary: 256 bytes, 256 bytes that end a word, the merges, and two special tokens."""
    source = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(source.read_bytes()).decode().split("\n")[: 1 + size - 514]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def spoken(record: dict[str, Any], rng: random.Random) -> str:
    """A caption as someone might give it: the name, and sometimes style, category and keywords."""
    parts = [record["caption"]]
    if rng.random() < 0.3:
        parts.append(", ".join(record["keywords"]))
    if rng.random() < 0.3:
        parts.append(record["category"])
    if rng.random() < 0.7:
        parts.append(record["style"])
    return ", ".join(parts)


def train(role: str, epochs: int, batch: int, held_style: str | None, out: Path) -> None:
    chosen = ROLES[role]
    seed = chosen["seed"]
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    write_vocabulary(out / clip.BPE, chosen["vocabulary"])
    tokenizer = clip.tokenizer(out / clip.BPE, CONTEXT)
    model = clip.build(configuration(role))
    trunk: nn.Module = model.visual.trunk  # type: ignore[union-attr,assignment]
    trunk.load_state_dict(efficientnet.load().state_dict(), strict=False)
    images, captions = records()
    used = [i for i, r in enumerate(captions) if r["split"] == "train" and r["style"] != held_style]
    views = locked_features(trunk, images, seed) if chosen["locked"] else None
    slow = [] if chosen["locked"] else list(trunk.parameters())
    trunk_ids = set(map(id, trunk.parameters()))
    fast = [p for p in model.parameters() if id(p) not in trunk_ids]
    optimizer = torch.optim.AdamW([{"params": fast}, {"params": slow}], betas=(0.9, 0.98), weight_decay=0.05)
    rates, loss_of = (1e-3, 3e-4), open_clip.ClipLoss()
    per_epoch = len(used) // batch
    steps, began = epochs * per_epoch, time.time()
    model.train()
    if chosen["locked"]:
        trunk.eval().requires_grad_(False)
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        order = torch.randperm(len(used), generator=torch.Generator().manual_seed(seed * 1000 + epoch)).tolist()
        rows = [used[i] for i in order[position * batch : (position + 1) * batch]]
        rng, generator = random.Random(seed * 10**6 + step), torch.Generator().manual_seed(seed * 10**6 + step)
        schedule = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * schedule
        tokens = tokenizer([spoken(captions[i], rng) for i in rows])
        if views is None:
            seen_images = model.encode_image(augmented(images[rows], generator), normalize=True)  # type: ignore[operator]
        else:
            view = torch.randint(VIEWS, (len(rows),), generator=generator)
            seen_images = F.normalize(model.visual.head(views[view, rows]), dim=-1)  # type: ignore[union-attr,operator]
        loss = loss_of(seen_images, model.encode_text(tokens, normalize=True), model.logit_scale.exp())  # type: ignore[operator]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # type: ignore[operator]
        if position == per_epoch - 1:
            print(f"epoch {epoch + 1}/{epochs} loss {loss.item():.3f} {time.time() - began:.0f} s", flush=True)
    model.eval()
    quality = {"epochs": epochs, "images": steps * batch, "seed": seed, "held_out_style": held_style}
    quality |= retrieval(model, tokenizer, images, captions, held_style)
    _save(model, role, quality, out)


@torch.no_grad()
def locked_features(trunk: nn.Module, images: Tensor, seed: int) -> Tensor:
    """Features (VIEWS, N, F) of augmented pictures."""
    trunk.eval()
    generator = torch.Generator().manual_seed(seed)
    return torch.stack(
        [torch.cat([trunk(augmented(x, generator)) for x in torch.split(images, 64)]) for _ in range(VIEWS)]
    )


@torch.no_grad()
def retrieval(
    model: Any, tokenizer: clip.Tokenizer, images: Tensor, captions: list[dict[str, Any]], held_style: str | None
) -> dict[str, float]:
    """Picture-to-caption R@1 and R@10 in per cent, among the names of the set the pictures come from."""
    groups = {
        "held_out_names": [i for i, r in enumerate(captions) if r["split"] == "held_out"],
        "train_names": [i for i, r in enumerate(captions) if r["split"] == "train"][::10],
    }
    if held_style:
        seen = [i for i, r in enumerate(captions) if r["split"] == "train" and r["style"] == held_style]
        groups = {"held_out_style": seen[::10]}
    found: dict[str, float] = {}
    for group, rows in groups.items():
        names = sorted({captions[i]["caption"] for i in rows})
        text = torch.cat(
            [model.encode_text(tokenizer(names[i : i + 256]), normalize=True) for i in range(0, len(names), 256)]
        )
        features = torch.cat(
            [model.encode_image(images[rows[i : i + 64]], normalize=True) for i in range(0, len(rows), 64)]
        )
        right = torch.tensor([names.index(captions[i]["caption"]) for i in rows])
        similarity = features @ text.T
        rank = (similarity > similarity.gather(1, right[:, None])).sum(1)
        found[f"{group}_among"] = len(names)
        found |= {f"{group}_r@{k}": round(100 * (rank < k).float().mean().item(), 1) for k in (1, 10)}
    return found


def _save(model: nn.Module, role: str, quality: dict[str, Any], out: Path) -> None:
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": configuration(role), "preprocess_cfg": preprocess}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    kept = model.state_dict()
    if role == "text":
        kept = {name: value for name, value in kept.items() if not name.startswith("visual.")}
    halved = {name: (v.half() if v.is_floating_point() else v).contiguous() for name, v in kept.items()}
    metadata = {
        "quality": json.dumps(quality),
        "made_by": f"python -m nas.assets.make_clip --role {role}",
        "licence": "Apache-2.0; trained on the pictures named in NOTICE",
    }
    path = out / "open_clip_model.safetensors"
    save_file(halved, path, metadata)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB {quality}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=sorted(ROLES), required=True)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--hold-out-style", dest="held_style", choices=("noto", "twemoji", "fluent"))
    parser.add_argument("--out", type=Path, help="folder; default nas/assets/ROLE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out = arguments.out or Path(__file__).parent / arguments.role
    train(arguments.role, arguments.epochs, arguments.batch, arguments.held_style, out)


if __name__ == "__main__":
    main()
