"""Pictures as files."""

from pathlib import Path

from torch import Tensor


def save_grid(images: Tensor, path: Path, columns: int) -> None:
    """Images (B, 3, H, W) in [-1, 1] as one PNG, row by row, with a white gap of 2 px."""
    from torchvision.utils import save_image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(images.clamp(-1, 1) / 2 + 0.5, path, nrow=columns, padding=2, pad_value=1.0)
