"""Published masked autoregressors as settings of this one. Names are the ones `nas cost` takes.

MAR-B, L and H are those of arXiv 2406.11838, table 3 and its released code: tokens are the 16 x 16 positions of 16-channel
latents. MAR is told a class, here the text's tokens stand where its class stands. So its table of 1,000 classes, the one that
replaces a dropped class and the places of its 64 class rows are left out, the projection of the text is added; and the head has
no channels in which it predicts a variance. That changes the count by 0.15 % at most.
"""

from nas.networks.backbones.mar import Config

PRESETS: dict[str, Config] = {
    "mar-b": Config(12, 12, 768, 12, head_depth=6, head_width=1024),
    "mar-l": Config(16, 16, 1024, 16, head_depth=8, head_width=1280),
    "mar-h": Config(20, 20, 1280, 16, head_depth=12, head_width=1536),
}
