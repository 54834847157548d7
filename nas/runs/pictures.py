"""Pictures as files: grids of samples, written by trials and read back as tiles for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

GAP = 2  # px between tiles
TILE_SIZES = (64, 128, 256, 512, 32)  # px; a grid says which by where its white gaps are
PNG = b"\x89PNG\r\n\x1a\n"  # what such a file begins with
QUALITIES = (90, 70, 50, 30)  # of WebP, tried in turn until an album fits


def check_name(path: Path) -> None:
    """Raises InputError when the ending of a file's name is not that of a picture that can be written."""
    from PIL import Image

    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"--out {path}: expected a picture's name, such as {path.stem}.png or {path.stem}.jpg")


def is_png(path: Path) -> bool:
    """Whether there is a PNG, told by its content. Nothing else is opened: Pillow starts programs for some formats."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(PNG)) == PNG


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Images (B, 3, H, W) in [-1, 1] as one picture, row by row, with a white gap of 2 px."""
    from torchvision.utils import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(images.clamp(-1, 1) / 2 + 0.5, path, nrow=columns, padding=GAP, pad_value=1.0)


@dataclass(frozen=True)
class Grid:
    """A samples.png as tiles: its geometry in pixels, and the picture as a data URL (WebP, an eighth of the PNG)."""

    tile: int
    border: int
    columns: int
    rows: int
    width: int
    height: int
    url: str

    def corner(self, index: int) -> tuple[int, int]:
        """Left and top of a tile, counted row by row."""
        row, column = divmod(index, self.columns)
        return self.border + column * (self.tile + GAP), self.border + row * (self.tile + GAP)


def read_grid(path: Path, quality: int = QUALITIES[0]) -> Grid | None:
    """The tiles of a samples.png, found by its white gaps; None if there is no PNG or no such grid in it."""
    from PIL import Image

    if not is_png(path):
        return None
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    grid = _grid(image)
    return replace(grid, url=_data_url(image, quality)) if grid else None


def tiles(path: Path) -> list[str]:
    """The pictures of a samples.png, row by row, each as a data URL (PNG); [] if there is no PNG or no such grid in it."""
    from PIL import Image

    if not is_png(path):
        return []
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    grid = _grid(image)
    if grid is None:
        return []
    corners = map(grid.corner, range(grid.rows * grid.columns))
    return [_png(image.crop((x, y, x + grid.tile, y + grid.tile))) for x, y in corners]


def whole(path: Path) -> str | None:
    """A PNG as a data URL; None if there is none."""
    from PIL import Image

    if not is_png(path):
        return None
    with Image.open(path) as opened:
        return _data_url(opened.convert("RGB"), QUALITIES[0])


def album(run_dir: Path, first: Iterable[int], others: Iterable[int], most: int, limit: int) -> dict[int, Grid]:
    """The samples of trials by number: at most `most` grids that take at most `limit` bytes of a page together.

    Those in `first` are compressed harder until they fit, and left out from the end if that is not enough; `others`
    fill up what is left.
    """
    found: dict[int, Grid] = {}
    for quality in QUALITIES:
        found = _grids(run_dir, list(first)[:most], quality)
        if _size(found) <= limit:
            break
    while _size(found) > limit:
        found.popitem()
    for trial in others:
        left = limit - _size(found)
        grid = read_grid(samples(run_dir, trial)) if len(found) < most and left > 0 else None
        if grid is not None and len(grid.url) <= left:
            found[trial] = grid
    return found


def known(run_dir: Path, names: Iterable[str]) -> dict[str, Grid]:
    """The grids of the lines of reference that drew the captions, by name."""
    read = {name: read_grid(picture(run_dir, name), QUALITIES[1]) for name in names}
    return {name: grid for name, grid in read.items() if grid is not None}


def _grids(run_dir: Path, trials: Iterable[int], quality: int) -> dict[int, Grid]:
    read = {trial: read_grid(samples(run_dir, trial), quality) for trial in trials}
    return {trial: grid for trial, grid in read.items() if grid is not None}


def samples(run_dir: Path, trial: int) -> Path:
    """Where a trial's pictures lie, if it has any: the first of those that it was scored on."""
    return run_dir / "trials" / f"{trial:04d}" / "samples.png"


def _size(grids: dict[int, Grid]) -> int:
    return sum(len(grid.url) for grid in grids.values())


def _is_grid(white: np.ndarray, tile: int, border: int) -> bool:
    """Whether a side of the picture (one mark per pixel line that is all white) divides into tiles with white gaps."""
    inner = white[border : len(white) - border]
    fits = len(inner) >= tile and (len(inner) + GAP) % (tile + GAP) == 0
    gaps = np.arange(len(inner)) % (tile + GAP) >= tile
    return fits and bool(inner[gaps].all()) and bool(white[:border].all())


def _grid(image: Any) -> Grid | None:
    """The geometry of a picture that is a grid, without the URL."""
    white = np.asarray(image).min(axis=2) == 255
    for tile in TILE_SIZES:
        for border in (GAP, 0):
            if _is_grid(white.all(axis=0), tile, border) and _is_grid(white.all(axis=1), tile, border):
                columns, rows = ((size - 2 * border + GAP) // (tile + GAP) for size in image.size)
                return Grid(tile, border, columns, rows, image.width, image.height, "")
    return None


def _png(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _data_url(image: Any, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(run_dir: Path, name: str) -> Path:
    """Where the grid of a line's pictures of the captions lies, if it has any."""
    path = Path(run_dir) / "lines" / name / "samples.png"
    of_model = Path(run_dir) / "base" / "0" / "samples.png"  # the study's base model draws as trials do first
    return of_model if name == "base" and of_model.exists() else path
