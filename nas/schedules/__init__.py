"""`nas schedule`: which units a trained network computes at which step, searched for one network after its training."""
