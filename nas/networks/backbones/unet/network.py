"""The modules of the U-shaped denoiser.

B batch, C channels, H W latent height and width, N = H*W image tokens, T text tokens, D text width, P width of the
pooled vector, E time width.

Module names depend only on the position of a block, so that two networks of one search space share the names of what
they share: `levels.{i}.down.{j}.conv.full`, `levels.{i}.down.{j}.conv.separable`,
`levels.{i}.down.{j}.stacks.0.blocks.{k}`, `mid.{j}`. A layer whose input or output axis is several tensors side by side
(a skip concatenated to the input, value and gate of the FFN) says so: `in_parts` and `out_parts` are the sizes of the
parts, in order.
"""

import math
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.networks.backbones.unet import Config, Level

if TYPE_CHECKING:
    from nas.networks.conditioning import Text

Module = TypeVar("Module", bound=nn.Module)


def parts(module: Module, *, inputs: tuple[int, ...] = (), outputs: tuple[int, ...] = ()) -> Module:
    """The module, marked with the parts its input or output axis is made of. A single part is not marked."""
    if len(inputs) > 1:
        vars(module)["in_parts"] = inputs
    if len(outputs) > 1:
        vars(module)["out_parts"] = outputs
    return module


def zeroed(module: Module) -> Module:
    """The module with all parameters zero: its residual branch adds nothing at first, as in the LDM code of SD."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class FullConv(nn.Module):
    """SD's residual block: two convolutions, the time embedding added between them."""

    def __init__(self, inputs: tuple[int, ...], channels: int, config: Config, kernel: int):
        super().__init__()
        width, padding = sum(inputs), kernel // 2
        self.norm1 = parts(nn.GroupNorm(config.groups, width), inputs=inputs)
        self.conv1 = parts(nn.Conv2d(width, channels, kernel, padding=padding), inputs=inputs)
        self.time = nn.Linear(config.time_width, channels)
        self.norm2 = nn.GroupNorm(config.groups, channels)
        self.conv2 = zeroed(nn.Conv2d(channels, channels, kernel, padding=padding))
        self.shortcut = parts(nn.Conv2d(width, channels, 1), inputs=inputs) if width != channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        added = self.branch(x, time)
        shortcut: Tensor = self.shortcut(x)
        return shortcut + added

    def skipped(self, x: Tensor, time: Tensor) -> Tensor:
        """The shortcut alone."""
        shortcut: Tensor = self.shortcut(x)
        return shortcut

    def branch(self, x: Tensor, time: Tensor) -> Tensor:
        """What is added to the input."""
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(time)[:, :, None, None]
        out: Tensor = self.conv2(F.silu(self.norm2(h)))
        return out


class SeparableConv(nn.Module):
    """ConvNeXt-like block: depthwise convolution, group norm, two pointwise convolutions; the time is added last."""

    def __init__(self, inputs: tuple[int, ...], channels: int, config: Config, kernel: int):
        super().__init__()
        width, inner = sum(inputs), config.expansion * channels
        depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.depthwise = parts(depthwise, inputs=inputs, outputs=inputs)
        self.norm = parts(nn.GroupNorm(config.groups, width), inputs=inputs)
        self.expand = parts(nn.Conv2d(width, inner, 1), inputs=inputs)
        self.project = zeroed(nn.Conv2d(inner, channels, 1))
        self.time = nn.Linear(config.time_width, channels)
        self.shortcut = parts(nn.Conv2d(width, channels, 1), inputs=inputs) if width != channels else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        added: Tensor = self.branch(x) + self.time(time)[:, :, None, None]
        shortcut: Tensor = self.shortcut(x)
        return shortcut + added

    def skipped(self, x: Tensor, time: Tensor) -> Tensor:
        """The shortcut alone."""
        shortcut: Tensor = self.shortcut(x)
        return shortcut

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the input, but for the time's share."""
        out: Tensor = self.project(F.silu(self.expand(self.norm(self.depthwise(x)))))
        return out


CONVOLUTIONS = {"full": FullConv, "separable": SeparableConv}


def weighted(q: Tensor, k: Tensor, v: Tensor, attention: str) -> Tensor:
    """Attention over heads: q (B, heads, N, d), k and v (B, heads, M, d) -> (B, heads, N, d).

    `relu` divides by the number of keys, after Wortsman et al., "Replacing softmax with ReLU in Vision Transformers"
    (2309.08586).
    """
    if attention == "softmax":
        return F.scaled_dot_product_attention(q, k, v)
    weights = F.relu(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])) / k.shape[-2]
    return weights @ v


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, C) to a context (B, M, D); `shared_kv`: one matrix for keys and values."""

    def __init__(self, width: int, context_width: int, heads: int, shared_kv: bool, attention: str):
        super().__init__()
        self.heads, self.attention, self.shared_kv = heads, attention, shared_kv
        self.to_q = nn.Linear(width, width, bias=False)
        if shared_kv:
            self.to_kv = nn.Linear(context_width, width, bias=False)
        else:
            self.to_k = nn.Linear(context_width, width, bias=False)
            self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q = self._split(self.to_q(x))
        k, v = (self._split(y) for y in self._keys_and_values(context))
        out: Tensor = self.to_out(weighted(q, k, v, self.attention).transpose(1, 2).flatten(2))
        return out

    def linearise(self) -> None:
        """Attend by softmax, which can be made uniform."""
        self.attention = "softmax"

    def _keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        if self.shared_kv:
            kv = self.to_kv(context)
            return kv, kv
        return self.to_k(context), self.to_v(context)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, N, C) -> (B, heads, N, C/heads)


class FeedForward(nn.Module):
    """Gated FFN: value * activation(gate)."""

    def __init__(self, width: int, ratio: int, activation: str):
        super().__init__()
        inner = ratio * width
        self.expand = parts(nn.Linear(width, 2 * inner), outputs=(inner, inner))
        self.activate = nn.GELU() if activation == "gelu" else nn.SiLU()
        self.project = nn.Linear(inner, width)
        self.averages = False

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.expand(x).chunk(2, dim=-1)
        out: Tensor = self.project((value + gate) / 2 if self.averages else value * self.activate(gate))
        return out

    def linearise(self) -> None:
        """Average value and gate in place of gating."""
        self.averages = True


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (each only where the level has it) and one FFN, each after a layer norm."""

    def __init__(self, level: Level, config: Config):
        super().__init__()
        width, heads = level.channels, config.head_count(level.channels)
        self.self_attention, self.cross_attention = level.self_attention, level.cross_attention
        if level.self_attention:
            self.norm_self = nn.LayerNorm(width)
            self.attend_self = Attention(width, width, heads, config.shared_kv, config.attention)
        if level.cross_attention:
            self.norm_cross = nn.LayerNorm(width)
            self.attend_cross = Attention(width, config.text_width, heads, False, config.attention)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = FeedForward(width, level.ffn_ratio, config.activation)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        if self.self_attention:
            normed = self.norm_self(x)
            x = x + self.attend_self(normed, normed)
        if self.cross_attention:
            x = x + self.attend_cross(self.norm_cross(x), tokens)
        ffn: Tensor = self.ffn(self.norm_ffn(x))
        return x + ffn

    def skipped(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The input."""
        return x

    def silence(self) -> None:
        """Add nothing at first."""
        if self.self_attention:
            zeroed(self.attend_self.to_out)
        if self.cross_attention:
            zeroed(self.attend_cross.to_out)
        zeroed(self.ffn.project)


class Stack(nn.Module):
    """`depth` transformer blocks between two pointwise convolutions, added to the input."""

    def __init__(self, depth: int, level: Level, config: Config):
        super().__init__()
        self.norm = nn.GroupNorm(config.groups, level.channels, eps=1e-6)  # SD's value
        self.proj_in = nn.Conv2d(level.channels, level.channels, 1)
        self.blocks = nn.ModuleList(TransformerBlock(level, config) for _ in range(depth))
        self.proj_out = zeroed(nn.Conv2d(level.channels, level.channels, 1))

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        h = h.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, C)
        for block in self.blocks:
            h = block(h, tokens)
        h = h.transpose(1, 2).reshape(x.shape)  # (B, N, C) -> (B, C, H, W)
        out: Tensor = self.proj_out(h)
        return x + out

    def skipped(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The input."""
        return x

    def silence(self) -> None:
        """Add nothing at first."""
        zeroed(self.proj_out)


class Block(nn.Module):
    """A conv block and the transformer blocks after it. `inputs` are the widths of the concatenated inputs."""

    def __init__(self, inputs: tuple[int, ...], depth: int, level: Level, config: Config):
        super().__init__()
        conv = CONVOLUTIONS[level.conv](inputs, level.channels, config, level.kernel)
        self.conv = nn.ModuleDict({level.conv: conv})
        self.kind = level.conv
        self.stacks = nn.ModuleList(Stack(blocks, level, config) for blocks in config.stacks(depth))

    def forward(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        x = self.conv[self.kind](x, time)
        for stack in self.stacks:
            x = stack(x, tokens)
        return x


class LevelBlocks(nn.Module):
    """The blocks of one resolution, and the convolutions to the next smaller and to the next larger one."""

    def __init__(self, index: int, config: Config):
        super().__init__()
        level, last = config.levels[index], len(config.levels) - 1
        width, above = level.channels, config.levels[max(index - 1, 0)].channels
        below = config.levels[min(index + 1, last)].channels
        inputs = (above,) + (width,) * (len(level.down) - 1)
        self.down = nn.ModuleList(
            Block((i,), depth, level, config) for i, depth in zip(inputs, level.down, strict=True)
        )
        inputs = (below,) + (width,) * (len(level.up) - 1)
        self.skips = config.skip_widths(index)
        self.up = nn.ModuleList(
            Block((i, skip) if skip else (i,), depth, level, config)
            for i, skip, depth in zip(inputs, self.skips, level.up, strict=True)
        )
        self.downsample = nn.Conv2d(width, width, 3, stride=2, padding=1) if index < last else None
        self.upsample = nn.Conv2d(width, width, 3, padding=1) if index > 0 else None

    def descend(self, x: Tensor, time: Tensor, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The input of the next level, and what skips may use: this level's input and the output of each block."""
        kept = [x]
        for block in self.down:
            x = block(x, time, tokens)
            kept.append(x)
        return (x if self.downsample is None else self.downsample(x)), kept

    def ascend(self, x: Tensor, kept: list[Tensor], time: Tensor, tokens: Tensor) -> Tensor:
        """The input of the level above."""
        for skip, block in zip(self.skips, self.up, strict=True):
            x = block(torch.cat([x, kept.pop()], dim=1) if skip else x, time, tokens)
        if self.upsample is None:
            return x
        out: Tensor = self.upsample(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class TimeEmbedding(nn.Module):
    """Sines and cosines of the time, and a two-layer network; the pooled text, if used, is added through its own."""

    def __init__(self, config: Config):
        super().__init__()
        self.width = config.levels[0].channels
        self.time = _two_layers(self.width, config.time_width)
        self.pooled = _two_layers(config.pooled_width, config.time_width) if config.pooled_width else None

    def forward(self, time: Tensor, pooled: Tensor) -> Tensor:
        half = self.width // 2
        steps = torch.arange(half, device=time.device, dtype=torch.float32)
        angles = time.float()[:, None] * torch.exp(-math.log(10000) * steps / half)  # (B, half)
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        embedded: Tensor = self.time(waves.to(pooled.dtype))
        return embedded + self.pooled(pooled) if self.pooled is not None else embedded


def _two_layers(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))


class UNet(nn.Module):
    """The denoiser: `network(latents, time, text) -> prediction`.

    latents (B, C, H, W), H and W divisible by 2 per level below the first; time (B,) in 0..999; text.tokens (B, T, D),
    text.pooled (B, P) -> (B, C, H, W). The last convolution of the network, of every conv block and of every stack
    start at zero, so a new network predicts zero.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config = config.canonical()
        outer, inner = config.levels[0], config.levels[-1]
        self.embedding = TimeEmbedding(config)
        made, pooled = config.pooled_tokens * config.text_width, config.pooled_width
        self.pooled_tokens = nn.Linear(pooled, made) if pooled and made else None
        self.conv_in = nn.Conv2d(config.latent_channels, outer.channels, 3, padding=1)
        self.levels = nn.ModuleList(LevelBlocks(index, config) for index in range(len(config.levels)))
        self.mid = nn.ModuleList(Block((inner.channels,), depth, inner, config) for depth in config.mid)
        self.norm_out = nn.GroupNorm(config.groups, outer.channels)
        self.conv_out = zeroed(nn.Conv2d(outer.channels, config.latent_channels, 3, padding=1))

    @property
    def output(self) -> nn.Conv2d:
        """The last layer."""
        return self.conv_out

    @property
    def stages(self) -> dict[str, nn.Module]:
        """The last block of each resolution on the way down and on the way up, before the image is resampled; (B, C, H, W)."""
        levels = [cast(LevelBlocks, level) for level in self.levels]
        down = {f"levels.{index}.down": level.down[-1] for index, level in enumerate(levels)}
        return down | {f"levels.{index}.up": level.up[-1] for index, level in reversed(list(enumerate(levels)))}

    @property
    def middle(self) -> nn.Module:
        """The deepest block, after which the network turns upwards; its output is (B, C, H, W)."""
        deepest = cast(LevelBlocks, self.levels[-1])
        return (self.mid or deepest.down)[-1]

    @property
    def middle_width(self) -> int:
        """C of the middle's output."""
        return self.config.levels[-1].channels

    def forward(self, latents: Tensor, time: Tensor, text: "Text") -> Tensor:
        embedded = F.silu(self.embedding(time, text.pooled))  # (B, E), as every conv block takes it
        tokens = self._tokens(text)
        x = self.conv_in(latents)
        levels = [cast(LevelBlocks, level) for level in self.levels]
        kept: list[list[Tensor]] = []
        for level in levels:
            x, saved = level.descend(x, embedded, tokens)
            kept.append(saved)
        for block in self.mid:
            x = block(x, embedded, tokens)
        for level in reversed(levels):
            x = level.ascend(x, kept.pop(), embedded, tokens)
        prediction: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return prediction

    def _tokens(self, text: "Text") -> Tensor:
        """What cross-attention reads: those made of the pooled vector, then the text's."""
        if self.pooled_tokens is None:
            return text.tokens
        made = self.pooled_tokens(text.pooled).unflatten(1, (-1, text.tokens.shape[2]))  # (B, n D) -> (B, n, D)
        return torch.cat([made, text.tokens], dim=1)
