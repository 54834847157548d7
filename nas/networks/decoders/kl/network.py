"""The modules of the decoder. B batch, C channels, H W size of the latents."""

import torch.nn.functional as F
from torch import Tensor, nn

from nas.networks.decoders.kl import Config

EPS = 1e-6  # SD's value in every norm of its autoencoder


class Residual(nn.Module):
    """Two convolutions added to the input."""

    def __init__(self, i: int, o: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, i, eps=EPS), nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, o, eps=EPS), nn.Conv2d(o, o, 3, padding=1)
        self.shortcut = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        shortcut: Tensor = self.shortcut(x)
        return shortcut + h


class Attention(nn.Module):
    """Self-attention of pixels with one head, added to the input."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, width, eps=EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, C, H, W) -> (B, 1, H*W, C)
        out = F.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        attended: Tensor = self.to_out(out[:, 0]).transpose(1, 2).reshape(x.shape)
        return x + attended


class Decoder(nn.Module):
    """latents (B, C, H, W) -> images (B, 3, H*f, W*f), f = 2 ** (levels - 1)."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        widths, groups = [level.channels for level in config.levels], config.groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(Residual(widths[-1], widths[-1], groups) for _ in range(config.mid_blocks))
        self.attention = Attention(widths[-1], groups) if config.attention else None
        self.levels = nn.ModuleList()
        self.upsample = nn.ModuleList()
        for index, level in enumerate(config.levels):
            inputs = [widths[min(index + 1, len(widths) - 1)]] + [level.channels] * (level.blocks - 1)
            self.levels.append(nn.Sequential(*(Residual(i, level.channels, groups) for i in inputs)))
            self.upsample.append(nn.Conv2d(level.channels, level.channels, 3, padding=1) if index else nn.Identity())
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=EPS)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.conv_in(latents)
        for index, block in enumerate(self.mid):
            x = block(x)
            if index == 0 and self.attention is not None:
                x = self.attention(x)
        for index in reversed(range(len(self.levels))):
            x = self.levels[index](x)
            if index:
                x = self.upsample[index](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        images: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return images
