"""Makes `emoji.tar.gz`: 1,906 emoji drawn in three styles at 64x64, captioned, as one WebDataset shard.

    python -m nas.assets.make_emoji [--from DIR] [--to FILE]

The pictures come from three npm packages (`--from` a `node_modules` folder that holds them; without it they are installed
into a temporary folder with `npm`). Names, keywords and categories are those of `emoji.json`. The file is the same, byte
for byte, every time (given the same libwebp).
"""

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from nas.assets import FOLDER

PACKAGES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
)
PICTURES = {  # style: where its pictures lie, and what they are called
    "noto": ("emoji-datasource-google/img/google/64", ".png"),
    "twemoji": ("emoji-datasource-twitter/img/twitter/64", ".png"),
    "fluent": ("@lobehub/fluent-emoji-3d/assets", ".webp"),
}
SIZE = 64
HELD_OUT_SHARE = 0.1
WEBP = {"quality": 82, "method": 6, "use_sharp_yuv": True}  # sharp: flat saturated edges survive chroma subsampling


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--from", dest="packages", type=Path, help="a node_modules folder that holds the three packages"
    )
    parser.add_argument("--to", type=Path, default=FOLDER / "emoji.tar.gz")
    arguments = parser.parse_args()
    if arguments.packages is not None:
        count = write(arguments.packages, arguments.to)
    else:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["npm", "install", "--silent", "--prefix", folder, *PACKAGES], check=True)
            count = write(Path(folder) / "node_modules", arguments.to)
    print(f"{arguments.to}: {count} pictures, {arguments.to.stat().st_size / 1e6:.2f} MB")


def write(packages: Path, target: Path) -> int:
    """Writes the shard and returns how many pictures it holds."""
    emoji = [e for e in json.loads((packages / "emoji-datasource-google/emoji.json").read_text()) if usable(e)]
    held_out = held_out_names({e["name"].lower() for e in emoji})
    count = 0
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=9, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for entry, style, picture in pictures(emoji, packages):
            key = f"{picture.stem}_{style}"
            add(tar, f"{key}.webp", encode(picture))
            add(tar, f"{key}.json", json.dumps(record(entry, style, held_out), ensure_ascii=False).encode())
            count += 1
    return count


def usable(entry: dict[str, Any]) -> bool:
    """Skin tones and hair pieces (category Component) are parts, not pictures of something."""
    return bool(entry["category"] != "Component")


def held_out_names(names: set[str]) -> set[str]:
    """The tenth of the names whose hashes come first: held out in every style, whatever is added later."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ranked[: round(HELD_OUT_SHARE * len(ranked))])


def pictures(emoji: list[dict[str, Any]], packages: Path) -> Iterator[tuple[dict[str, Any], str, Path]]:
    """(emoji, style, file) in the order of `emoji.json`'s `sort_order`; Fluent 3D lacks 54 of them."""
    for entry in sorted(emoji, key=lambda e: e["sort_order"]):
        for style, (folder, suffix) in PICTURES.items():
            picture = packages / folder / Path(entry["image"]).with_suffix(suffix)
            if picture.exists():
                yield entry, style, picture


def record(entry: dict[str, Any], style: str, held_out: set[str]) -> dict[str, Any]:
    name = entry["name"].lower()
    return {
        "caption": name,
        "keywords": keywords(entry),
        "category": entry["category"].lower(),
        "style": style,
        "split": "held_out" if name in held_out else "train",
    }


def keywords(entry: dict[str, Any]) -> list[str]:
    """The short names and the subcategory as plain words."""
    words = [word.replace("_", " ").replace("-", " ") for word in (*entry["short_names"], entry["subcategory"])]
    return list(dict.fromkeys(words))


def encode(picture: Path) -> bytes:
    """The picture on white, SIZE x SIZE, as WebP."""
    with Image.open(picture) as image:
        drawn = image.convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")
    if flat.size != (SIZE, SIZE):
        flat = flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    flat.save(buffer, "WEBP", **WEBP)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
