"""The menu of searchable image decoders: the part of an autoencoder that turns latents into pixels.

Each provides `Config` and `presets()` like a backbone (`nas.networks.backbones`), and the module it builds is called as
`decoder(latents) -> images`.
"""
