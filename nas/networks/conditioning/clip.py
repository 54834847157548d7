"""open_clip models from a folder, a checkpoint file or a pretrained tag."""

from __future__ import annotations

import difflib
import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nas import menu
from nas.disk import weight_files
from nas.errors import InputError, brief, shown
from nas.networks.conditioning import clip_config

Tokenizer = Callable[[Sequence[str]], Tensor]
WEIGHTS = "open_clip_model.safetensors"
BPE = "bpe.txt.gz"  # a folder's own vocabulary, beside the configuration and the weights
LARGEST_BPE = 16 * 2**20  # bytes of text; CLIP's own has 1.3 million


def load(model: str | Path, pretrained: str | None = None) -> tuple[Any, Tokenizer]:
    """A frozen open_clip model in eval mode, and its tokenizer.

    `model` is a folder with open_clip_config.json and open_clip_model.safetensors, or a model name; then `pretrained` is a
    checkpoint file or a tag that open_clip downloads. Raises InputError saying which file to put where when that fails.
    """
    path = Path(model)
    if path.is_dir():
        return _from_folder(path)
    return _by_name(str(model), pretrained)


def quick_gelu(model: str | Path, pretrained: str | None = None) -> bool:
    """Whether the weights were trained with QuickGELU in place of GELU: the folder, the tag or the model's name says so.

    A checkpoint file does not: of those that OpenAI, DFN and MetaCLIP trained the model is called `<name>-quickgelu`.
    """
    if Path(model).is_dir():
        return clip_config.read(Path(model)).model_cfg.quick_gelu
    import open_clip

    tag = open_clip.get_pretrained_cfg(str(model), pretrained or "")
    return bool(tag.get("quick_gelu") or (open_clip.get_model_config(str(model)) or {}).get("quick_gelu"))


def fingerprint(model: str | Path) -> str | None:
    """Of the weights of a folder that says it; of no others."""
    weights = Path(model) / WEIGHTS
    return weight_files.metadata(weights, str(model)).get("fingerprint") if weights.is_file() else None


def _from_folder(path: Path) -> tuple[Any, Tokenizer]:
    import open_clip

    config = clip_config.read(path)
    where = f"{path}: not an open_clip folder"
    held = weight_files.read(path / WEIGHTS, where).tensors
    try:
        network = _built(config.model_cfg)
        if not any(name.startswith("visual.") for name in held):
            network.visual = nn.Identity()  # a text tower alone
        network.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in held.items()})
        tokenise = _tokenizer_of(path, config.model_cfg.text_cfg)
        tokenise(["a caption"])
    except InputError:
        raise
    except Exception as error:  # open_clip, timm and transformers raise many kinds
        raise InputError(f"{where}: {brief(error)}") from None
    defaults = asdict(open_clip.transform.PreprocessCfg())
    given = config.preprocess_cfg.model_dump(exclude_none=True)
    open_clip.model.set_model_preprocess_cfg(network, defaults | given)  # the pictures' mean and std
    return frozen(network), tokenise


def build(config: Mapping[str, Any]) -> nn.Module:
    """A fresh network from open_clip's `model_cfg`. Raises InputError for a key that
    `nas.networks.conditioning.clip_config` does not name."""
    return _built(clip_config.model(config))


def _built(config: clip_config.Model) -> nn.Module:
    import open_clip

    rest = config.model_dump(exclude={"embed_dim", "vision_cfg", "text_cfg"}, exclude_none=True)
    network: nn.Module = open_clip.CLIP(
        embed_dim=config.embed_dim,
        vision_cfg=open_clip.CLIPVisionCfg(**config.vision_cfg.arguments()),
        text_cfg=open_clip.CLIPTextCfg(**config.text_cfg.arguments()),
        output_dict=True,
        **rest,
    )
    return network


def _tokenizer_of(path: Path, text: clip_config.Text) -> Tokenizer:
    """A folder's: its own merges, the files of a Hugging Face tokenizer that lie in it, or CLIP's."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if (path / BPE).exists():
        return tokenizer(path / BPE, text.context_length)
    named = text.tokenizer_kwargs.model_dump(exclude_none=True) if text.tokenizer_kwargs else {}
    made: Tokenizer
    if text.hf_tokenizer_name:
        own = {"trust_remote_code": False, "local_files_only": True}
        made = HFTokenizer(str(path), text.context_length, tokenizer_mode=text.tokenizer_mode, **named, **own)
    else:
        named.pop("strip_sep_token", None)  # CLIP's has none
        made = SimpleTokenizer(context_length=text.context_length, **named)
    return made


def tokenizer(bpe: Path, length: int) -> Tokenizer:
    """CLIP's byte-pair tokenizer with the merges in `bpe`. Raises InputError when they are more than a vocabulary."""
    from open_clip.tokenizer import SimpleTokenizer

    with gzip.open(bpe) as file:
        if len(file.read(LARGEST_BPE + 1)) > LARGEST_BPE:
            raise InputError(f"{bpe}: more than {LARGEST_BPE / 2**20:.0f} MiB of text; expected a vocabulary")
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
    assert pretrained is not None
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise InputError(
            f"open_clip weights {pretrained!r} for {model}: neither a checkpoint file nor a tag{menu.nearest(pretrained, tags)}"
        )
    quick = quick_gelu(model, pretrained)
    try:
        network = open_clip.create_model(
            model, pretrained=pretrained, force_quick_gelu=quick, output_dict=True, weights_only=True
        )
        return frozen(network), open_clip.get_tokenizer(model, **_without_code(model))
    except Exception as error:  # open_clip raises many kinds when a hub cannot be reached
        if not tag:
            raise weight_files.unreadable(Path(pretrained), f"open_clip weights for {model}", error) from None
        plain = model.removesuffix("-quickgelu")
        named = f", with the model {plain}-quickgelu, since these weights were trained with QuickGELU" if quick else ""
        raise InputError(
            f"open_clip weights {pretrained!r} for {model} could not be fetched ({brief(error)}); download the checkpoint "
            f"elsewhere and set pretrained to its path (open_clip_pytorch_model.bin or a .safetensors file){named}"
        ) from None


def _without_code(model: str) -> dict[str, bool]:
    """For a tokenizer from a hub: its files, without asking whether to run Python among them."""
    import open_clip

    return (
        {"trust_remote_code": False} if open_clip.get_model_config(model)["text_cfg"].get("hf_tokenizer_name") else {}
    )


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)
