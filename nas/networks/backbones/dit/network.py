"""The modules of the diffusion transformer.

B batch, C channels, n side of the latents, N = (n / patch)^2 image tokens, T text tokens, D width.

Module names depend only on the position of a block, so that two networks of one search space share the names of what they share.
A layer whose output axis is several tensors side by side (shift, scale and gate), or whose input axis is (a skip beside the
input), says so: `out_parts` and `in_parts`.
"""

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.networks.backbones.dit import FREQUENCIES, Config

if TYPE_CHECKING:
    from nas.networks.conditioning import Text

EPSILON = 1e-6  # of norms, DiT's value


def norm(kind: str, width: int, affine: bool) -> nn.Module:
    """A layer or RMS norm of tokens."""
    made = nn.LayerNorm if kind == "layer" else nn.RMSNorm
    return made(width, eps=EPSILON, elementwise_affine=affine)


def zeroed(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """The layer with all parameters zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, D) to a context (B, M, D)."""

    def __init__(self, config: Config, shared_kv: bool):
        super().__init__()
        width, bias = config.width, config.modulation != "token"
        self.heads, self.shared_kv = config.heads, shared_kv
        self.to_q = nn.Linear(width, width, bias=bias)
        if shared_kv:
            self.to_kv = nn.Linear(width, width, bias=bias)
        else:
            self.to_k = nn.Linear(width, width, bias=bias)
            self.to_v = nn.Linear(width, width, bias=bias)
        normed = config.qk_norm
        self.norm_q, self.norm_k = (
            nn.RMSNorm(width // config.heads, eps=EPSILON) if normed else nn.Identity() for _ in range(2)
        )
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = (self.to_kv(context),) * 2 if self.shared_kv else (self.to_k(context), self.to_v(context))
        q, k, v = (y.view(*y.shape[:2], self.heads, -1).transpose(1, 2) for y in (self.to_q(x), k, v))
        attended = F.scaled_dot_product_attention(self.norm_q(q), self.norm_k(k), v)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Self-attention, cross-attention to the text if that is how it gets in, and an MLP, each added to the tokens.

    With modulation `block` or `shared`, self-attention and MLP are shifted, scaled and gated by the time; cross-attention is
    neither normalised nor gated (PixArt). A new block adds nothing in `block`, and its cross-attention adds nothing in any.
    """

    def __init__(self, index: int, config: Config):
        super().__init__()
        width, self.modulated = config.width, config.modulation
        affine = config.modulation == "token"
        if config.skip(index):
            self.skip = nn.Linear(2 * width, width)
            vars(self.skip)["in_parts"] = (width, width)
        self.norm_self = norm(config.norm, width, affine)
        self.attend_self = Attention(config, config.shared_kv)
        if config.text == "cross":
            self.attend_cross = Attention(config, False)
            zeroed(self.attend_cross.to_out)
        self.cross = config.text == "cross"
        self.norm_mlp = norm(config.norm, width, affine)
        tanh: nn.Module = nn.GELU(approximate="none" if affine else "tanh")
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mlp_ratio * width), tanh, nn.Linear(config.mlp_ratio * width, width)
        )
        if config.modulation == "block":
            self.modulation = modulation(width, 6)
        elif config.modulation == "shared":
            self.table = nn.Parameter(torch.randn(6, width) / math.sqrt(width))

    def forward(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """Tokens (B, N, D), text tokens (B, T, D); time (B, D), or with modulation `shared` (B, 6, D)."""
        if self.modulated == "token":
            normed = self.norm_self(x)
            x = x + self.attend_self(normed, normed)
            x = x + self.attend_cross(x, text) if self.cross else x
            return x + cast(Tensor, self.mlp(self.norm_mlp(x)))
        six = self.modulation(F.silu(time)).unflatten(1, (6, -1)) if self.modulated == "block" else self.table + time
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = six[:, :, None].unbind(1)
        normed = self.norm_self(x) * (1 + scale) + shift
        x = x + gate * self.attend_self(normed, normed)
        x = x + self.attend_cross(x, text) if self.cross else x
        return x + gate_mlp * cast(Tensor, self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp))

    def skipped(self, x: Tensor, text: Tensor, time: Tensor) -> Tensor:
        """The input."""
        return x


def modulation(width: int, count: int) -> nn.Linear:
    """From the time to `count` vectors side by side, zero at first."""
    layer = cast(nn.Linear, zeroed(nn.Linear(width, count * width)))
    vars(layer)["out_parts"] = (width,) * count
    return layer


class Transformer(nn.Module):
    """The denoiser: `network(latents, time, text) -> prediction`.

    latents (B, C, n, n), n divisible by the patch; time (B,) in 0..999; text.tokens (B, T, text width), text.pooled (B, P) ->
    (B, C, n, n). The last layer starts at zero, so a new network predicts zero.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config = config.canonical()
        width, channels, patch = config.width, config.latent_channels, config.patch
        self.patches = nn.ModuleDict({str(patch): nn.Conv2d(channels, width, patch, stride=patch)})
        if config.modulation != "token":
            self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.pooled = nn.Linear(config.pooled_width, width) if config.pooled_width else None
        if config.text == "cross":
            gelu: nn.Module = nn.GELU(approximate="tanh")
            self.text = nn.Sequential(nn.Linear(config.text_width, width), gelu, nn.Linear(width, width))
        elif config.text == "sequence":
            self.text = nn.Sequential(nn.Linear(config.text_width, width))
        if config.modulation == "shared":
            self.modulation = nn.Linear(width, 6 * width)
            vars(self.modulation)["out_parts"] = (width,) * 6
        self.blocks = nn.ModuleList(Block(index, config) for index in range(config.depth))
        self.norm_out = norm(config.norm, width, config.modulation == "token")
        if config.modulation == "block":
            self.modulation_out = modulation(width, 2)
        elif config.modulation == "shared":
            self.table_out = nn.Parameter(torch.randn(2, width) / math.sqrt(width))
        unpatch = nn.Linear(width, patch * patch * channels)
        vars(unpatch)["out_parts"] = (channels,) * patch**2
        self.unpatch = nn.ModuleDict({str(patch): unpatch})
        if config.modulation == "token":
            self.smooth = zeroed(nn.Conv2d(channels, channels, 3, padding=1))
        else:
            zeroed(unpatch)

    @property
    def output(self) -> nn.Linear | nn.Conv2d:
        """The last layer."""
        return cast(nn.Conv2d, self.smooth) if self.config.modulation == "token" else self._of_patch(self.unpatch)

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The last block of each quarter of them; tokens (B, N, D)."""
        ends = [-(-quarter * self.config.depth // 4) - 1 for quarter in range(1, 5)]
        return {f"quarter {number}": self.blocks[end] for number, end in enumerate(ends, 1)}

    @property
    def middle(self) -> nn.Module:
        """The last block of the first half; its output is tokens (B, N, D)."""
        return self.blocks[(self.config.depth - 1) // 2]

    @property
    def middle_width(self) -> int:
        """D of the middle's output."""
        return self.config.width

    def forward(self, latents: Tensor, time: Tensor, text: "Text") -> Tensor:
        x = self._of_patch(self.patches)(latents)  # (B, D, n / patch, n / patch)
        side = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) + positions(side[0], side[1], self.config.width, x.device).to(x.dtype)
        embedded = self._time(time).to(x.dtype)
        if self.pooled is not None:
            embedded = embedded + self.pooled(text.pooled)
        tokens = self.text(text.tokens) if self.config.text != "none" else x[:, :0]
        given = x.shape[1]
        if self.config.text == "sequence":
            x = torch.cat([tokens, x], dim=1)
        if self.config.modulation == "token":
            x = torch.cat([embedded[:, None], x], dim=1)
        x = self._through(x, tokens, embedded)[:, -given:]
        return self._image(self._last(x, embedded), side)

    def _of_patch(self, layers: nn.ModuleDict) -> nn.Linear:
        """Layers of other patches have other names: networks of one space do not share them."""
        return cast(nn.Linear, layers[str(self.config.patch)])

    def _time(self, time: Tensor) -> Tensor:
        """Times (B,) embedded, (B, D): as a token they are plain waves."""
        if self.config.modulation == "token":
            return waves(time, self.config.width)
        embedded: Tensor = self.time(waves(time, FREQUENCIES).to(next(self.parameters()).dtype))
        return embedded

    def _through(self, x: Tensor, tokens: Tensor, embedded: Tensor) -> Tensor:
        """All blocks; what the first half puts out waits for the second."""
        shared = self.config.modulation == "shared"
        time = self.modulation(F.silu(embedded)).unflatten(1, (6, -1)) if shared else embedded
        kept: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if self.config.skip(index):
                x = cast(Block, block).skip(torch.cat([x, kept.pop()], dim=-1))
            x = block(x, tokens, time)
            if self.config.skips and index < self.config.depth // 2:
                kept.append(x)
        return x

    def _last(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Tokens (B, N, D) to patches (B, N, patch^2 C)."""
        x = self.norm_out(x)
        if self.config.modulation != "token":
            shared = self.config.modulation == "shared"
            two = (
                self.table_out + embedded[:, None]
                if shared
                else self.modulation_out(F.silu(embedded)).unflatten(1, (2, -1))
            )
            shift, scale = two[:, :, None].unbind(1)
            x = x * (1 + scale) + shift
        out: Tensor = self._of_patch(self.unpatch)(x)
        return out

    def _image(self, patches: Tensor, side: torch.Size) -> Tensor:
        """Patches back to latents (B, C, n, n)."""
        p = self.config.patch
        grid = patches.reshape(-1, side[0], side[1], p, p, self.config.latent_channels)
        image = grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return cast(Tensor, self.smooth(image)) if self.config.modulation == "token" else image


def waves(position: Tensor, width: int) -> Tensor:
    """Cosines and sines (..., width) of positions (...), of wavelengths from 2 pi to 10,000 times that."""
    half = width // 2
    steps = torch.arange(half, device=position.device, dtype=torch.float32)
    angles = position.float()[..., None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """The tokens' places (rows x columns, width): half of it says the column, half the row, as in DiT."""
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    along = (waves(place.flatten(), width // 2).chunk(2, dim=-1) for place in (x, y))
    return torch.cat([part for cosines, sines in along for part in (sines, cosines)], dim=-1)
