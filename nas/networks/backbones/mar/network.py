"""The modules of the masked autoregressor.

B batch, C channels, n side of the latents, L = (n / patch)^2 image tokens of c = patch^2 C numbers, V of them known, N any of
them, T text tokens, R rows before the image, D width.

Module names depend only on the position of a block, so that two networks of one search space share the names of what they share.
Where we differ from MAR: no dropout, whose randomness would not be the batch's, and no learned variance.
"""

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from nas.networks.backbones.mar import FREQUENCIES, Config

if TYPE_CHECKING:
    from nas.networks.conditioning import Text

EPSILON = 1e-6  # of norms
DEVIATION = 0.02  # of fresh tables


class Attention(nn.Module):
    """Multi-head attention of rows (B, N, D) to a context (B, M, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = (
            layer(given).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        out: Tensor = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention among rows, attention to the text, either of which may be missing, and an MLP, each added to the normed rows."""

    def __init__(self, config: Config, own: bool = True, cross: bool = False):
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        self.own, self.cross = own, cross
        if own:
            self.norm_self, self.attend_self = nn.LayerNorm(width, EPSILON), Attention(width, config.heads)
        if cross:
            self.norm_cross, self.attend_cross = nn.LayerNorm(width, EPSILON), Attention(width, config.heads)
        self.norm_mlp = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """Rows (B, N, D), text (B, T, D)."""
        if self.own:
            normed = self.norm_self(x)
            x = x + self.attend_self(normed, normed)
        if self.cross:
            x = x + self.attend_cross(self.norm_cross(x), text)
        return x + cast(Tensor, self.mlp(self.norm_mlp(x)))


class HeadBlock(nn.Module):
    """An MLP, shifted, scaled and gated by the embedded time and condition; it adds nothing at first."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = modulation(width, 3)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Tokens (B, N, W) and what is known of each, (B, N, W)."""
        shift, scale, gate = self.modulation(given).chunk(3, dim=-1)
        out: Tensor = x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)
        return out


class Head(nn.Module):
    """Denoises tokens one by one: noisy tokens (B, N, c), times (B,) or (B, N), conditions (B, N, D) -> (B, N, c).

    MAR, section 4.1 and its released code. The last layer starts at zero, so a new head predicts zero.
    """

    def __init__(self, config: Config):
        super().__init__()
        width, patch = config.head_width, str(config.patch)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(config.width, width)
        self.inputs = nn.ModuleDict({patch: nn.Linear(config.token_width, width)})
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(config.head_depth))
        self.norm_out = nn.LayerNorm(width, EPSILON, elementwise_affine=False)
        self.modulation_out = modulation(width, 2)
        self.outputs = nn.ModuleDict({patch: nn.Linear(width, config.token_width)})
        self.patch = patch

    def forward(self, tokens: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        given = F.silu(self._time(time) + self.condition(conditions))
        x = self.inputs[self.patch](tokens)
        for block in self.blocks:
            x = block(x, given)
        shift, scale = self.modulation_out(given).chunk(2, dim=-1)
        out: Tensor = self.outputs[self.patch](self.norm_out(x) * (1 + scale) + shift)
        return out

    def _time(self, time: Tensor) -> Tensor:
        """Times embedded, (B, 1 or N, W)."""
        waves = get_timestep_embedding(time.flatten(), FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedded: Tensor = self.time(waves.to(self.condition.weight.dtype))
        return embedded[:, None] if time.ndim == 1 else embedded.view(*time.shape, -1)


def modulation(width: int, count: int) -> nn.Linear:
    """To `count` vectors side by side, zero at first."""
    layer = nn.Linear(width, count * width)
    vars(layer)["out_parts"] = (width,) * count
    return layer


class Network(nn.Module):
    """The denoiser, `network(latents, time, text) -> prediction`, and an `Autoregressor`.

    latents (B, C, n, n), n divisible by the patch; time (B,) in 0..999; text.tokens (B, T, text width), text.pooled (B, P) ->
    (B, C, n, n).
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config = config.canonical()
        width, cross = config.width, config.text == "cross"
        self.project = self._reader()
        self.text = nn.Linear(config.text_width, width)
        self.aligner = nn.ModuleList(Block(config) for _ in range(config.aligner))
        self.pooled = nn.Linear(config.pooled_width, width) if config.pooled_width else None
        if config.text != "prefix":
            self.slots, self.slots_decoder = (table(config.buffer, width) for _ in range(2))
        self.places, self.places_decoder, self.places_head = (table(config.grid**2, width) for _ in range(3))
        self.norm_in = nn.LayerNorm(width, EPSILON)
        self.encoder = nn.ModuleList(Block(config, cross=cross) for _ in range(config.encoder_depth))
        self.norm_encoder = nn.LayerNorm(width, EPSILON)
        self.between = nn.Linear(width, width)
        self.missing = table(1, width)
        self.decoder = nn.ModuleList(Block(config, cross=cross) for _ in range(config.decoder_depth))
        late = config.decoder_depth if config.text == "late_cross" else 0
        self.late = nn.ModuleList(Block(config, own=False, cross=True) for _ in range(late))
        self.norm_decoder = nn.LayerNorm(width, EPSILON)
        self.head = self._writer()
        self.apply(_filled)
        nn.init.normal_(self.text.bias, std=DEVIATION)  # the empty caption is zeros, at which norms have no slope
        for name, layer in self.head.named_modules():
            if "modulation" in name:
                nn.init.zeros_(cast(nn.Linear, layer).weight)
        nn.init.zeros_(self.output.weight)

    def _reader(self) -> nn.Module:
        """What makes rows (B, V, D) of known tokens."""
        return nn.ModuleDict({str(self.config.patch): nn.Linear(self.config.token_width, self.config.width)})

    def _writer(self) -> nn.Module:
        """What makes tokens of conditions."""
        return Head(self.config)

    def _rows(self, tokens: Tensor) -> Tensor:
        """Known tokens (B, V, c) as rows (B, V, D)."""
        rows: Tensor = cast(nn.ModuleDict, self.project)[str(self.config.patch)](tokens)
        return rows

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        head = cast(Head, self.head)
        return cast(nn.Linear, head.outputs[head.patch])

    @property
    def middle(self) -> nn.Module:
        """The last block of the head's first half; its output is tokens (B, L, W). What comes before sees no noisy latents."""
        return cast(Head, self.head).blocks[(self.config.head_depth - 1) // 2]

    @property
    def middle_width(self) -> int:
        """W of the middle's output."""
        return self.config.head_width

    def forward(self, latents: Tensor, time: Tensor, text: "Text") -> Tensor:
        tokens = self.tokens(latents)
        return self.latents(self.denoised(tokens, time, self.conditions(tokens, None, text)))

    def tokens(self, latents: Tensor) -> Tensor:
        """Latents (B, C, n, n) as tokens (B, L, c), row by row."""
        p = self.config.patch
        side = latents.shape[2] // p
        grid = latents.reshape(-1, self.config.latent_channels, side, p, side, p)
        tokens: Tensor = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        return tokens

    def latents(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, c) as latents (B, C, n, n)."""
        p, side = self.config.patch, math.isqrt(tokens.shape[1])
        grid = tokens.reshape(-1, side, side, p, p, self.config.latent_channels)
        latents: Tensor = grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return latents

    def conditions(self, tokens: Tensor, known: Tensor | None, text: "Text") -> Tensor:
        """What is known of each token, (B, L, D), from the known ones among `tokens` (B, L, c); `known` (B, L), None for none.

        The others do not enter. Raises ValueError where rows know unequally many.
        """
        side = math.isqrt(tokens.shape[1])
        places = None if known is None else places_of(known)[..., None]
        context = self.text(text.tokens)
        for block in self.aligner:
            context = block(context, context)
        x = self._encoded(tokens, places, self._before(context, text), context)
        return self._decoded(x, places, side, context)

    def denoised(self, tokens: Tensor, time: Tensor, conditions: Tensor) -> Tensor:
        """The prediction for noisy tokens (B, N, c) at times (B,) or (B, N) under conditions (B, N, D); (B, N, c)."""
        found: Tensor = self.head(tokens, time, conditions)
        return found

    def _before(self, context: Tensor, text: "Text") -> Tensor:
        """The rows before the image, (B, R, D)."""
        rows = context if self.config.text == "prefix" else self.slots.repeat(context.shape[0], 1, 1)
        return rows if self.pooled is None else rows + self.pooled(text.pooled)[:, None]

    def _encoded(self, tokens: Tensor, places: Tensor | None, rows: Tensor, context: Tensor) -> Tensor:
        """The rows before the image and the tokens at `places` (B, V, 1), read together: (B, R + V, D)."""
        if places is not None:
            known = self._rows(tokens.gather(1, places.expand(-1, -1, tokens.shape[2])))
            where = resampled(self.places, math.isqrt(tokens.shape[1]))[places.squeeze(2)]
            rows = torch.cat([rows, known + where], dim=1)
        x = self.norm_in(rows)
        for block in self.encoder:
            x = block(x, context)
        out: Tensor = self.between(self.norm_encoder(x))
        return out

    def _decoded(self, x: Tensor, places: Tensor | None, side: int, context: Tensor) -> Tensor:
        """Conditions of all tokens, (B, L, D), from the encoder's rows."""
        before = context.shape[1] if self.config.text == "prefix" else self.config.buffer
        image = self.missing.expand(x.shape[0], side * side, -1)
        if places is not None:
            image = image.scatter(1, places.expand(-1, -1, x.shape[2]), x[:, before:].to(image.dtype))
        rows = x[:, :before] if self.config.text == "prefix" else x[:, :before] + self.slots_decoder
        x = torch.cat([rows, image + resampled(self.places_decoder, side)], dim=1)
        for block in self.decoder:
            x = block(x, context)
        x = x[:, before:]
        for block in self.late:
            x = block(x, context)
        return cast(Tensor, self.norm_decoder(x)) + resampled(self.places_head, side)


def places_of(known: Tensor) -> Tensor:
    """The places (B, V) of the V tokens that each row of `known` (B, L) says are known. Raises ValueError where V differs."""
    counts = known.sum(1)
    if (counts != counts[0]).any():
        raise ValueError(f"known: rows know {int(counts.min())} to {int(counts.max())} tokens, expected equally many")
    return known.nonzero()[:, 1].view(len(known), -1)


def table(rows: int, width: int) -> nn.Parameter:
    """Learned rows (rows, width)."""
    return nn.Parameter(nn.init.normal_(torch.empty(rows, width), std=DEVIATION))


def resampled(places: Tensor, side: int) -> Tensor:
    """A table of places (g^2, D) for side^2 tokens, (side^2, D)."""
    grid = math.isqrt(len(places))
    if grid == side:
        return places
    image = places.transpose(0, 1).reshape(1, -1, grid, grid)
    return F.interpolate(image, (side, side), mode="bilinear").flatten(2).squeeze(0).transpose(0, 1)


def _filled(module: nn.Module) -> None:
    """MAR's start of a linear layer."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
