"""A foreign set to try the page "Use your own pictures" on: 2,000 captioned JPEG of letters, in shards of img2dataset's form.

    python benchmarks/foreign_pictures.py letters

A caption names the letter, its colour, its typeface and the ground; size, place and tilt are left to chance. Pictures have
sizes of their own. As in sets from the web five files are cut off and ten come twice.
"""

from __future__ import annotations

import argparse
import io
import json
import string
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOURS = {
    "red": (208, 36, 36),
    "orange": (240, 140, 20),
    "green": (30, 140, 60),
    "blue": (35, 75, 200),
    "purple": (130, 50, 160),
    "pink": (240, 120, 170),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
}
GROUNDS = {"white": (250, 250, 250), "yellow": (250, 225, 110), "pale blue": (185, 215, 245), "grey": (165, 165, 165)}
TYPEFACES = {
    "sans-serif": "DejaVuSans",
    "serif": "DejaVuSerif",
    "bold": "DejaVuSans-Bold",
    "typewriter": "DejaVuSansMono",
}
SENTENCES = (
    "the letter {letter} in {colour}, {typeface}, on a {ground} ground",
    "a {colour} {typeface} {letter} on {ground}",
)
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
CUT_OFF, TWICE, SHARD = 5, 10, 500


def picture(rng: np.random.Generator) -> tuple[bytes, str]:
    """A JPEG and its caption."""
    letter, colour, ground, typeface = (
        str(rng.choice(list(of))) for of in (string.ascii_uppercase, COLOURS, GROUNDS, TYPEFACES)
    )
    width, height = (int(side) for side in rng.integers(150, 400, 2))
    side = min(width, height)
    font = ImageFont.truetype(str(FONTS / f"{TYPEFACES[typeface]}.ttf"), int(side * rng.uniform(0.45, 0.75)))
    drawn = Image.new("RGB", (width, height), GROUNDS[ground])
    at = (width / 2 + side * rng.uniform(-0.12, 0.12), height / 2 + side * rng.uniform(-0.12, 0.12))
    ImageDraw.Draw(drawn).text(at, letter, COLOURS[colour], font, anchor="mm")
    drawn = drawn.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, fillcolor=GROUNDS[ground])
    held = io.BytesIO()
    drawn.save(held, "JPEG", quality=90)
    sentence = str(rng.choice(SENTENCES))
    return held.getvalue(), sentence.format(letter=letter, colour=colour, ground=ground, typeface=typeface)


def pictures(count: int, seed: int) -> Iterator[tuple[bytes, str]]:
    """`count` pictures with captions, among them the cut-off ones and the copies."""
    rng = np.random.default_rng(seed)
    made = [picture(rng) for _ in range(count - TWICE)]
    made[:CUT_OFF] = [(jpeg[: len(jpeg) // 2], caption) for jpeg, caption in made[:CUT_OFF]]
    both = made + made[-TWICE:]
    return (both[place] for place in rng.permutation(count))


def write(folder: Path, count: int, seed: int) -> None:
    """Shards 00000.tar, 00001.tar, ... of `key.jpg`, `key.txt` and `key.json`."""
    folder.mkdir(parents=True)
    made = pictures(count, seed)
    for shard in range(-(-count // SHARD)):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as opened:
            for number, (jpeg, caption) in enumerate(islice(made, SHARD)):
                key = f"{shard:05}{number:04}"
                about = json.dumps({"caption": caption, "key": key, "status": "success"})
                for ending, content in {"jpg": jpeg, "txt": caption.encode(), "json": about.encode()}.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    opened.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.count, given.seed)
