"""open_clip models from a folder, a checkpoint file or a pretrained tag."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas.errors import InputError, brief, shown

Tokenizer = Callable[[Sequence[str]], Tensor]
BPE = "bpe.txt.gz"  # a folder's own vocabulary, beside open_clip_config.json and open_clip_model.safetensors


def load(model: str | Path, pretrained: str | None = None) -> tuple[Any, Tokenizer]:
    """A frozen open_clip model in eval mode, and its tokenizer.

    `model` is a folder with open_clip_config.json and open_clip_model.safetensors, or a model name; then `pretrained` is a
    checkpoint file or a tag that open_clip downloads. Raises InputError saying which file to put where when that fails.
    """
    path = Path(model)
    if path.is_dir():
        return _from_folder(path)
    return _by_name(str(model), pretrained)


def _from_folder(path: Path) -> tuple[Any, Tokenizer]:
    import open_clip
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        content = json.loads((path / "open_clip_config.json").read_text())
        config, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
        weights = load_file(path / "open_clip_model.safetensors")
        network = build(config)
        if not any(name.startswith("visual.") for name in weights):
            network.visual = nn.Identity()  # a text tower alone
        network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: not an open_clip folder: {brief(error)}") from None
    defaults = asdict(open_clip.transform.PreprocessCfg())
    open_clip.model.set_model_preprocess_cfg(network, defaults | preprocess)  # the pictures' mean and std
    bpe = path / BPE
    if bpe.exists():
        return frozen(network), tokenizer(bpe, config["text_cfg"]["context_length"])
    return frozen(network), open_clip.get_tokenizer(f"local-dir:{path}")


def build(config: dict[str, Any]) -> nn.Module:
    """A fresh network from open_clip's `model_cfg`."""
    import open_clip

    network: nn.Module = open_clip.model.CLIP(
        embed_dim=config["embed_dim"],
        vision_cfg=open_clip.CLIPVisionCfg(**config["vision_cfg"]),
        text_cfg=open_clip.CLIPTextCfg(**config["text_cfg"]),
        output_dict=True,
    )
    return network


def tokenizer(bpe: Path, length: int) -> Tokenizer:
    """CLIP's byte-pair tokenizer with the merges in `bpe`."""
    from open_clip.tokenizer import SimpleTokenizer

    made: Tokenizer = SimpleTokenizer(bpe_path=str(bpe), context_length=length)
    return made


def check(model: str | Path, pretrained: str | None = None) -> None:
    """Raises InputError for a model that `load` is known to refuse; loads none."""
    import open_clip

    if Path(model).is_dir():
        return
    known = open_clip.list_models()
    if model not in known:
        close = difflib.get_close_matches(str(model)[:100], known, n=5) or known[:5]
        raise InputError(
            f"open_clip model {shown(str(model))} is neither a folder nor a known name; expected a folder or one of its "
            f"{len(known)} names, for example {', '.join(close)}"
        )
    if pretrained is None:
        raise InputError(f"open_clip model {str(model)!r} needs pretrained: a checkpoint file or one of its tags")


def _by_name(model: str, pretrained: str | None) -> tuple[Any, Tokenizer]:
    import open_clip

    check(model, pretrained)
    try:
        network = open_clip.create_model(model, pretrained=pretrained, output_dict=True)
    except Exception as error:  # open_clip raises many kinds when a hub cannot be reached
        raise InputError(
            f"open_clip weights {pretrained!r} for {model} could not be fetched ({brief(error)}); download "
            f"the checkpoint elsewhere and set pretrained to its path (open_clip_pytorch_model.bin or a .safetensors file)"
        ) from None
    return frozen(network), open_clip.get_tokenizer(model)


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)
