"""`nas decoder`: a smaller image decoder for a trained network, taught by its own on latents that the network draws.

SnapFusion (Li et al. 2023, arXiv 2306.00980, section 3.2) prunes the channels of SD's decoder to half and trains what is left on
drawn latents, to the pictures of the whole decoder. No real picture is seen.
"""
