"""Stores a file of weights in 8 bits, with its metadata: half the size of half precision.

python -m nas.assets.pack runs/supernets/mobilediffusion_scenes.safetensors nas/assets/supernet_mobilediffusion_scenes.safetensors
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from nas.disk import packed, weight_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args()
    tensors, metadata = weight_files.read(given.source, "source")
    save_file(packed.pack(tensors), given.target, metadata)
    print(f"wrote {given.target} ({given.target.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
