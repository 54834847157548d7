"""Networks of the literature that the searchable backbones cannot express, built as published, for counting.

Most come from diffusers with the public settings. DiT-XL/2 and U-ViT-H/2 are built here: diffusers' DiT has a time embedder of
its own in every block (749.8 M parameters instead of 675.1 M), and its `UVit2DModel` is another network of a similar name.

Counting one takes seconds and gigabytes of imports, so counts at the usual settings lie in assets/reference_costs.json.
`python -m nas.space.references` counts them again; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nas import assets
from nas.cost.count import Cost
from nas.cost.traced import traced, traced_by_module

if TYPE_CHECKING:
    from torch import Tensor, nn

COUNTED = assets.FOLDER / "reference_costs.json"
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Reference:
    """A network and how it is called."""

    build: Callable[[int, int], nn.Module]
    """From latent size and text tokens; both matter only where a network has embeddings for each position."""
    inputs: Callable[[int, int], Call]
    """Arguments of one call at a latent size and a number of text tokens."""
    text_tokens: int
    """Text tokens it is published with."""
    spatial: bool = True
    """Whether it works on an image."""


def cost(name: str, latent_size: int, text_tokens: int) -> Cost:
    """Cost of one call on one image: looked up at the usual settings, otherwise traced."""
    known: dict[str, dict[str, int]] = json.loads(COUNTED.read_text()) if COUNTED.exists() else {}
    found = known.get(_setting(name, latent_size, text_tokens))
    return Cost(**found) if found else count(name, latent_size, text_tokens)


def count(name: str, latent_size: int, text_tokens: int) -> Cost:
    """The same by tracing the network."""
    network, args, kwargs = _on_meta(name, latent_size, text_tokens)
    return traced(network, *args, **kwargs)


def count_by_module(name: str, latent_size: int, text_tokens: int) -> dict[str, Cost]:
    """The cost of each module directly inside the network."""
    network, args, kwargs = _on_meta(name, latent_size, text_tokens)
    modules = traced_by_module(network, *args, **kwargs)
    return {module: cost for module, cost in modules.items() if module and "." not in module}


def _on_meta(name: str, latent_size: int, text_tokens: int) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import torch

    reference = REFERENCES[name]
    with torch.device("meta"):
        return reference.build(latent_size, text_tokens).eval(), *reference.inputs(latent_size, text_tokens)


def _setting(name: str, latent_size: int, text_tokens: int) -> str:
    return f"{name} {latent_size if REFERENCES[name].spatial else '-'} {text_tokens}"


def _diffusers(kind: str, **settings: Any) -> Callable[[int, int], nn.Module]:
    def build(latent_size: int, text_tokens: int) -> nn.Module:
        import diffusers

        network: nn.Module = getattr(diffusers, kind)(**settings)
        return network

    return build


def _meta(*shape: int) -> Tensor:
    import torch

    return torch.empty(*shape, device="meta")


# -- diffusers' classes ----------------------------------------------------------------------------------------------

# stabilityai/stable-diffusion-xl-base-1.0, unet/config.json
SDXL = _diffusers(
    "UNet2DConditionModel",
    in_channels=4,
    out_channels=4,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=[1, 2, 10],
    attention_head_dim=[5, 10, 20],
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)


def _sdxl_inputs(size: int, tokens: int) -> Call:
    conditions = {"text_embeds": _meta(1, 1280), "time_ids": _meta(1, 6)}
    return (_meta(1, 4, size, size), _meta(1), _meta(1, tokens, 2048)), {
        "added_cond_kwargs": conditions,
        "return_dict": False,
    }


# PixArt-alpha/PixArt-XL-2-512x512, transformer/config.json
def _pixart(latent_size: int, text_tokens: int) -> nn.Module:
    return _diffusers(
        "PixArtTransformer2DModel",
        sample_size=latent_size,
        norm_type="ada_norm_single",
        caption_channels=4096,
        cross_attention_dim=1152,
        out_channels=8,
        use_additional_conditions=False,
    )(latent_size, text_tokens)


def _pixart_inputs(size: int, tokens: int) -> Call:
    return (_meta(1, 4, size, size), _meta(1, tokens, 4096), _meta(1)), {
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }


def _kandinsky(**settings: Any) -> Callable[[int, int], nn.Module]:
    """kandinsky-community/kandinsky-2-1 and -2-2-decoder, unet/config.json: the same but for what conditions them."""
    return _diffusers(
        "UNet2DConditionModel",
        in_channels=4,
        out_channels=8,
        block_out_channels=(384, 768, 1152, 1536),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
        attention_head_dim=64,
        cross_attention_dim=768,
        addition_embed_type_num_heads=64,
        resnet_time_scale_shift="scale_shift",
        **settings,
    )


def _kandinsky21_inputs(size: int, tokens: int) -> Call:
    conditions = {"text_embeds": _meta(1, 768), "image_embeds": _meta(1, 768)}
    return (_meta(1, 4, size, size), _meta(1), _meta(1, tokens, 1024)), {
        "added_cond_kwargs": conditions,
        "return_dict": False,
    }


def _kandinsky22_inputs(size: int, tokens: int) -> Call:
    conditions = {"image_embeds": _meta(1, 1280)}
    return (_meta(1, 4, size, size), _meta(1), None), {"added_cond_kwargs": conditions, "return_dict": False}


def _prior_inputs(size: int, tokens: int) -> Call:
    return (_meta(1, 768), _meta(1)), {
        "proj_embedding": _meta(1, 768),
        "encoder_hidden_states": _meta(1, tokens, 768),
        "return_dict": False,
    }


# -- published layouts that diffusers does not have ------------------------------------------------------------------


def _dit(latent_size: int, text_tokens: int) -> nn.Module:
    """DiT-XL/2 (arXiv 2212.09748), as facebookresearch/DiT lays it out: class-conditional, width 1152, 28 blocks."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width, heads, patch, latent = 1152, 16, 2, 4

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.modulation = nn.Linear(width, 6 * width)

        def forward(self, x: Tensor, c: Tensor) -> Tensor:
            a, b, gate_a, d, e, gate_d = self.modulation(F.silu(c)).chunk(6, dim=1)
            q, k, v = self.qkv(F.layer_norm(x, (width,)) * (1 + b[:, None]) + a[:, None]).chunk(3, dim=-1)
            x = x + gate_a[:, None] * self.proj(_attend(q, k, v, heads))
            h = F.layer_norm(x, (width,)) * (1 + e[:, None]) + d[:, None]
            out: Tensor = x + gate_d[:, None] * self.down(F.gelu(self.up(h), approximate="tanh"))
            return out

    class DiT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(latent, width, patch, stride=patch)
            self.position = nn.Parameter(torch.zeros(1, (latent_size // patch) ** 2, width), requires_grad=False)
            self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
            self.label = nn.Embedding(1001, width)
            self.blocks = nn.ModuleList(Block() for _ in range(28))
            self.modulation, self.out = nn.Linear(width, 2 * width), nn.Linear(width, patch**2 * 2 * latent)

        def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2) + self.position
            c = self.time(time) + self.label(label)
            for block in self.blocks:
                x = block(x, c)
            shift, scale = self.modulation(F.silu(c)).chunk(2, dim=1)
            out: Tensor = self.out(F.layer_norm(x, (width,)) * (1 + scale[:, None]) + shift[:, None])
            return out

    return DiT()


def _dit_inputs(size: int, tokens: int) -> Call:
    return (_meta(1, 4, size, size), _meta(1, 256), _meta(1).long()), {}


def _uvit(latent_size: int, text_tokens: int) -> nn.Module:
    """U-ViT-H/2 (arXiv 2209.12152) with text tokens: width 1152, 29 blocks, long skips; time and text are tokens."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width, heads, patch, latent, half = 1152, 16, 2, 4, 14

    class Block(nn.Module):
        def __init__(self, skip: bool = False) -> None:
            super().__init__()
            self.skip = nn.Linear(2 * width, width) if skip else None
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
            if self.skip is not None and skip is not None:
                x = self.skip(torch.cat([x, skip], dim=-1))
            q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
            x = x + self.proj(_attend(q, k, v, heads))
            out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
            return out

    class UViT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.text = nn.Conv2d(latent, width, patch, stride=patch), nn.Linear(768, width)
            self.position = nn.Parameter(torch.zeros(1, 1 + text_tokens + (latent_size // patch) ** 2, width))
            self.inner = nn.ModuleList(Block() for _ in range(half))
            self.mid = Block()
            self.outer = nn.ModuleList(Block(skip=True) for _ in range(half))
            self.norm, self.predict = nn.LayerNorm(width), nn.Linear(width, patch**2 * latent)
            self.final = nn.Conv2d(latent, latent, 3, padding=1)

        def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([time[:, None], self.text(text), x], dim=1) + self.position
            kept = []
            for block in self.inner:
                x = block(x)
                kept.append(x)
            x = self.mid(x)
            for block in self.outer:
                x = block(x, kept.pop())
            x = self.predict(self.norm(x))[:, 1 + text_tokens :]
            out: Tensor = self.final(x.transpose(1, 2).reshape(1, latent, latent_size, latent_size))
            return out

    return UViT()


def _uvit_inputs(size: int, tokens: int) -> Call:
    return (_meta(1, 4, size, size), _meta(1, 1152), _meta(1, tokens, 768)), {}


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (x.view(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


REFERENCES: dict[str, Reference] = {
    "sdxl": Reference(SDXL, _sdxl_inputs, 77),
    "dit-xl-2": Reference(_dit, _dit_inputs, 0),
    "pixart-alpha": Reference(_pixart, _pixart_inputs, 120),
    "kandinsky21": Reference(
        _kandinsky(addition_embed_type="text_image", encoder_hid_dim=1024, encoder_hid_dim_type="text_image_proj"),
        _kandinsky21_inputs,
        77,
    ),
    "kandinsky22": Reference(
        _kandinsky(addition_embed_type="image", encoder_hid_dim=1280, encoder_hid_dim_type="image_proj"),
        _kandinsky22_inputs,
        0,
    ),
    "kandinsky-prior": Reference(_diffusers("PriorTransformer"), _prior_inputs, 77, spatial=False),
    "uvit-h-2": Reference(_uvit, _uvit_inputs, 77),
}


def main() -> None:
    """Count every reference at 256, 512 and 1024 pixels with its own text length."""
    counted = {
        _setting(name, size, reference.text_tokens): asdict(count(name, size, reference.text_tokens))
        for name, reference in REFERENCES.items()
        for size in ((32, 64, 128) if reference.spatial else (64,))
    }
    COUNTED.write_text(json.dumps(counted, indent=1) + "\n")


if __name__ == "__main__":
    main()
