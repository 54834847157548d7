"""Makes the shipped picture set: `python -m nas.assets.make_emoji` (needs npm, or --from a node_modules folder).

5,664 pictures at 64x64 of 1,906 emoji in three drawn styles, as a gzipped WebDataset tar of `key.webp` + `key.json`. Names are held
out, not pictures: a tenth of the Unicode names, chosen by hash, is in no style of the training split. The file is the same to the
byte each time (for one Pillow and libwebp).
"""

from __future__ import annotations

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

from PIL import Image

PACKAGES = ("emoji-datasource-google@16.0.0", "emoji-datasource-twitter@16.0.0", "@lobehub/fluent-emoji-3d@1.1.0")
SIZE = 64
QUALITY = 85  # of WebP: 5.3 MB in all
HELD_OUT = 0.1
Entry = dict[str, str]


def held_out(names: set[str]) -> set[str]:
    """The tenth of the names whose SHA-256 comes first."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return set(ordered[: round(len(ordered) * HELD_OUT)])


def pictures(modules: Path) -> Iterator[tuple[str, dict[str, str], Path]]:
    """(key, caption record without split, picture file) of every emoji in every style that draws it."""
    for entry in json.loads((modules / "emoji-datasource-google" / "emoji.json").read_text()):
        if entry["category"] == "Component":
            continue
        keywords = ", ".join(word.replace("_", " ") for word in entry["short_names"])
        for style, path in files(modules, entry).items():
            record = {"caption": entry["name"].lower(), "keywords": keywords, "category": entry["category"].lower()}
            if path is not None:
                yield f"{entry['unified'].lower()}_{style}", record | {"style": style}, path


def files(modules: Path, entry: Entry) -> dict[str, Path | None]:
    """Where each style keeps an emoji. Fluent leaves out the variation selector of some names."""
    code = entry["unified"].lower()
    fluent = modules / "@lobehub" / "fluent-emoji-3d" / "assets"
    spellings = (fluent / f"{code}.webp", fluent / f"{code.replace('-fe0f', '')}.webp")
    return {
        "noto": modules / "emoji-datasource-google" / "img" / "google" / "64" / entry["image"],
        "twemoji": modules / "emoji-datasource-twitter" / "img" / "twitter" / "64" / entry["image"],
        "fluent": next((path for path in spellings if path.exists()), None),
    }


def on_white(path: Path) -> bytes:
    """The picture at 64x64 on white, as WebP."""
    image = Image.open(path).convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    out = io.BytesIO()
    canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def make(modules: Path, out: Path) -> None:
    found = list(pictures(modules))
    held = held_out({record["caption"] for _, record, _ in found})
    with out.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as zipped:
        with tarfile.open(fileobj=zipped, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, record, path in found:
                split = "held_out" if record["caption"] in held else "train"
                _add(tar, f"{key}.webp", on_white(path))
                _add(tar, f"{key}.json", json.dumps(record | {"split": split}, ensure_ascii=False).encode())
    print(f"{out}: {len(found)} pictures, {len(held)} names held out, {out.stat().st_size / 1e6:.2f} MB")


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="modules", type=Path, help="a node_modules folder with the three packages")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "emoji.tar.gz")
    arguments = parser.parse_args()
    if arguments.modules:
        make(arguments.modules, arguments.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "install", "--prefix", folder, *PACKAGES], check=True)
        make(Path(folder) / "node_modules", arguments.out)


if __name__ == "__main__":
    main()
