"""Networks by name or file, what they cost, and what their papers say they cost (`nas cost`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nas import menu
from nas.cost.count import Cost, Part
from nas.documents.document import Document
from nas.errors import InputError
from nas.networks import backbones
from nas.networks.backbones import Backbone
from nas.space import references
from nas.space.references import REFERENCES

Convention = Literal["macs", "macs_without_attention", "macs_padding_free"]
DOWNSAMPLING = 8  # pixels per latent position of all these networks' autoencoders
TEXT_TOKENS = 77  # of CLIP, for networks that don't say otherwise


@dataclass(frozen=True)
class Paper:
    """What a paper prints for 512 pixel images. Millions of parameters; thousand millions of what it calls FLOPs or MACs."""

    params: float | None
    giga: float | None
    convention: Convention | None
    """The convention that gives this number; None if none does."""
    source: str
    """Where it is printed."""


TABLE1 = "MobileDiffusion, table 1"
PAPERS = {
    "mobilediffusion": Paper(386, 182, "macs_padding_free", TABLE1),
    "sd15": Paper(862, 392, "macs_padding_free", TABLE1),
    "snapfusion": Paper(848, 285, None, TABLE1 + "; no known layout gives it"),
    "sdxl": Paper(2600, 710, None, TABLE1),
    "dit-xl-2": Paper(675, 525, "macs", TABLE1),
    "pixart-alpha": Paper(600, None, None, "MobileDiffusion, table 2"),
    "bk-sdm-base": Paper(None, 224, "macs_without_attention", "BK-SDM"),
    "bk-sdm-small": Paper(None, 218, "macs_without_attention", "BK-SDM"),
    "bk-sdm-tiny": Paper(None, 205, "macs_without_attention", "BK-SDM"),
    "uvit-h-2": Paper(501, None, None, "U-ViT"),
}


@dataclass(frozen=True)
class Row:
    """One network's cost."""

    name: str
    image_size: int | None
    """Pixels along a side; None for a network that sees no image."""
    text_tokens: int
    cost: Cost
    paper: Paper | None = None

    def plain(self) -> dict[str, Any]:
        """As one flat JSON object."""
        row: dict[str, Any] = {"name": self.name, "image_size": self.image_size, "text_tokens": self.text_tokens}
        row |= asdict(self.cost)
        if self.paper:
            row |= {f"paper_{key}": value for key, value in asdict(self.paper).items()}
        return row


def names() -> list[str]:
    """Every network with a name: presets of the searchable backbone, then the others."""

    return [*backbones.presets(), *REFERENCES]


def cost_table(networks: Sequence[str], image_size: int = 512, text_tokens: int | None = None) -> list[Row]:
    """Costs of networks given by name or by a YAML file that holds an architecture; text_tokens None: as each is published.

    Raises InputError for an unknown name, a file that holds no architecture, or an image size the network cannot take.
    """
    return [_row(network, image_size, text_tokens) for network in networks]


def parts_table(network: str, image_size: int = 512, text_tokens: int | None = None) -> list[Part]:
    """One network's cost by component and resolution; for one that is not searchable, by its outermost modules."""

    size = latent_size(image_size)
    if network in references.REFERENCES:
        tokens = references.REFERENCES[network].text_tokens if text_tokens is None else text_tokens
        modules = references.count_by_module(network, size, tokens)
        return [Part(module, 0, cost) for module, cost in modules.items()]
    config = architecture(network, names())
    try:
        return config.parts(size, TEXT_TOKENS if text_tokens is None else text_tokens)
    except ValueError as error:
        raise InputError(f"{network}: {error}") from None


def architecture(network: str, offered: Sequence[str] | None = None) -> Backbone:
    """The preset of this name, or the architecture in a YAML file: alone, or under the key `architecture`.

    Raises InputError for anything else, with the nearest of the `offered` names; None: of the presets.
    """
    if network in backbones.presets():
        return backbones.presets()[network]
    if not network.endswith((".yaml", ".yml")):
        known = list(offered or backbones.presets())
        raise InputError(f"unknown network {network!r}{menu.nearest(network, known)} (or a YAML file)")

    document = Document.read(Path(network))
    location = ("architecture",) if "architecture" in document.content else ()
    try:
        return backbones.from_dict(document.content.get("architecture", document.content))
    except (ValueError, TypeError) as error:
        raise document.error(location, f"{error}; expected an architecture") from None


def _row(network: str, image_size: int, text_tokens: int | None) -> Row:

    size = latent_size(image_size)
    paper = PAPERS.get(network) if image_size == 512 and text_tokens is None else None
    if network in references.REFERENCES:
        reference = references.REFERENCES[network]
        tokens = reference.text_tokens if text_tokens is None else text_tokens
        cost = references.cost(network, size, tokens)
        return Row(network, image_size if reference.spatial else None, tokens, cost, paper)
    tokens = TEXT_TOKENS if text_tokens is None else text_tokens
    try:
        return Row(network, image_size, tokens, architecture(network, names()).cost(size, tokens), paper)
    except ValueError as error:
        raise InputError(f"{network}: {error}") from None


def latent_size(image_size: int) -> int:
    """Side of the latents of an image. Raises InputError if the image cannot be divided so."""
    if image_size % DOWNSAMPLING or image_size < DOWNSAMPLING:
        raise InputError(f"image size {image_size}: expected a multiple of {DOWNSAMPLING} pixels")
    return image_size // DOWNSAMPLING


EXPLAINED = {
    "macs": "MACs with attention",
    "macs_without_attention": "MACs without attention",
    "macs_padding_free": "MACs free of padding",
}

# -- printing --------------------------------------------------------------------------------------------------------

HEADINGS = {
    "macs": "MACs, G",
    "macs_without_attention": "without attention",
    "macs_padding_free": "padding-free",
}


def lines(rows: Sequence[Row]) -> list[str]:
    """One JSON object a network."""
    return [json.dumps(row.plain()) for row in rows]


def grid(rows: Sequence[Row], paper: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people; with `paper` beside the published numbers and what explains them."""
    headings = ["network", "params, M", *HEADINGS.values(), "activations, MB", "image", "tokens"]
    cells = [_cells(row) for row in rows]
    if paper:
        headings += ["paper: params, M", "paper: G", "explained by"]
        cells = [cell + _paper_cells(row) for cell, row in zip(cells, rows, strict=True)]
    return headings, cells


def _cells(row: Row) -> list[str]:
    macs = [f"{getattr(row.cost, name) / 1e9:.2f}" for name in HEADINGS]
    size = "-" if row.image_size is None else str(row.image_size)
    activations = f"{row.cost.activation_bytes / 1e6:.0f}"
    return [row.name, f"{row.cost.params / 1e6:.2f}", *macs, activations, size, str(row.text_tokens)]


def _paper_cells(row: Row) -> list[str]:
    if row.paper is None:
        return ["", "", ""]
    params = "" if row.paper.params is None else f"{row.paper.params:g}"
    if row.paper.giga is None:
        return [params, "", ""]
    if row.paper.convention is None:
        return [params, f"{row.paper.giga:g}", "nothing"]
    ours = getattr(row.cost, row.paper.convention) / 1e9
    return [params, f"{row.paper.giga:g}", f"{EXPLAINED[row.paper.convention]} ({ours / row.paper.giga - 1:+.1%})"]


def part_grid(parts: Sequence[Part]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a breakdown, with shares of the totals."""
    params, macs = (sum(getattr(part.cost, name) for part in parts) for name in ("params", "macs"))
    headings = ["component", "at", "params, M", "%", "MACs, G", "%"]
    cells = [
        [
            part.component,
            str(part.side or "-"),
            f"{part.cost.params / 1e6:.2f}",
            f"{100 * part.cost.params / params:.1f}",
        ]
        + [f"{part.cost.macs / 1e9:.2f}", f"{100 * part.cost.macs / max(macs, 1):.1f}"]
        for part in parts
    ]
    return headings, cells
