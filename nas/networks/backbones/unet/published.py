"""Published networks as settings of the UNet. Names are the ones `nas cost` takes."""

from dataclasses import replace

from nas.networks.backbones.unet import Config, Level


def _mobilediffusion(bottleneck: Level) -> Config:
    outer = Level(320, down=(0,), up=(0, 0))
    middle = Level(640, down=(1,), up=(1, 1), cross_attention=True)
    return Config(levels=(outer, middle, bottleneck))


BOTTLENECK = Level(
    1024, down=(3, 3), up=(3, 3, 3), self_attention=True, cross_attention=True, conv="separable", ffn_ratio=3
)


def _sd(*levels: Level, mid: tuple[int, ...] = ()) -> Config:
    """SD-1.5's settings around other levels."""
    attending = tuple(replace(level, self_attention=True, cross_attention=True, ffn_ratio=4) for level in levels)
    return Config(
        levels=attending,
        mid=mid,
        latent_channels=4,
        pooled_width=None,
        shared_kv=False,
        activation="gelu",
        skips="all",
        head_dim=None,
        heads=8,
    )


BK_SDM = (Level(320, (1,), (1, 1)), Level(640, (1,), (1, 1)), Level(1280, (1,), (1, 1)), Level(1280, (0,), (0, 0)))

PRESETS: dict[str, Config] = {
    # Layout L-A: arXiv 2311.16567, tables 1 and 6; 386 M parameters. The paper leaves details open: this reading
    # matches its totals.
    "mobilediffusion": _mobilediffusion(BOTTLENECK),
    # The same paper's Lite variant: 896 channels and two transformer blocks on the way up. The paper prints no totals
    # for it.
    "mobilediffusion-lite": _mobilediffusion(replace(BOTTLENECK, channels=896, up=(2, 2, 2))),
    # Stable Diffusion 1.5, unet/config.json of runwayml/stable-diffusion-v1-5.
    "sd15": _sd(
        Level(320, (1, 1), (1, 1, 1)),
        Level(640, (1, 1), (1, 1, 1)),
        Level(1280, (1, 1), (1, 1, 1)),
        Level(1280, (0, 0), (0, 0, 0)),
        mid=(1, 0),
    ),
    # BK-SDM: arXiv 2305.15798, src/unet_config of Nota-NetsPresso/BK-SDM.
    "bk-sdm-base": _sd(*BK_SDM, mid=(1, 0)),
    "bk-sdm-small": _sd(*BK_SDM),
    "bk-sdm-tiny": _sd(*BK_SDM[:3]),
    # SnapFusion: arXiv 2306.00980. The layout is uncertain: no reading of its tables gives the 848 M parameters it
    # reports.
    "snapfusion": replace(
        _sd(
            Level(320, (0, 0), (0, 0, 0)),
            Level(640, (1, 1), (1, 1, 1)),
            Level(1280, (2,), (3, 3)),
            Level(1280, (0,), (0, 0)),
            mid=(1,),
        ),
        projections="block",
    ),
}
