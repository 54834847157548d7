"""Published diffusion transformers as settings of this one. Names are the ones `nas cost` takes.

Left out of each is what this workbench has no use for: the table of classes, and the channels in which DiT and PixArt predict a
variance. U-ViT learns its table of positions; here positions are sines and cosines in all three.
"""

from nas.networks.backbones.dit import Config

PRESETS: dict[str, Config] = {
    # DiT-XL/2: arXiv 2212.09748, table 1.
    "dit-xl": Config(28, 1152, 16, text="none", modulation="block"),
    # PixArt-alpha: arXiv 2310.00426; T5-XXL's tokens.
    "pixart": Config(28, 1152, 16, text="cross", modulation="shared", text_width=4096),
    # U-ViT-H/2: arXiv 2209.12152, table 1; CLIP's tokens, as in its text-to-image models.
    "u-vit-h": Config(29, 1152, 16, text="sequence", modulation="token", skips=True),
}
