"""Every network, by what it is for: backbones, decoders, autoencoders, text encoders, and those that judge."""
