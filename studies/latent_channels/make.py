"""Makes the autoencoders of this study below runs/latent_channels, and measures their reconstructions.

    python studies/latent_channels/make.py

Each begins with the shipped one's weights, all but the layers that touch the latents, and is trained alike; what is there is
not made again. reconstructions.csv, beside this file, has PSNR and Frechet distance on the held-out pictures.
"""

from pathlib import Path

import pandas as pd
import torch

from nas.assets import make_autoencoder
from nas.metrics import fid
from nas.networks.autoencoders import kl
from nas.training.decoders import BATCH, psnr

CHANNELS = (4, 8, 16)
STEPS, PICTURES, LEARNING_RATE = 1000, 16, 1e-3
FOLDER = Path("runs/latent_channels")
TABLE = Path(__file__).with_name("reconstructions.csv")


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for channels in CHANNELS:
        path = FOLDER / f"c{channels}.safetensors"
        if not path.exists():
            make_autoencoder.train(8, STEPS, PICTURES, LEARNING_RATE, 0, path, channels, kl.SHIPPED)
    pictures = make_autoencoder.images("held_out")
    judge = fid.EfficientNet()
    real = judge(pictures)
    rows = []
    for channels in CHANNELS:
        autoencoder = kl.load(kl.Settings(path=FOLDER / f"c{channels}.safetensors"))
        made = torch.cat([autoencoder.decode(autoencoder.encode(part)) for part in torch.split(pictures, BATCH)])
        distance = float(fid.frechet_distance(judge(made), real))
        row = {"channels": channels, "images_seen": STEPS * PICTURES, "psnr_db": psnr(made, pictures)}
        rows.append(row | {"fid_efficientnet_lite0": distance})
    table = pd.DataFrame(rows)
    table.to_csv(TABLE, index=False, float_format="%.6g")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
