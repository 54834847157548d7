"""Replay of recorded learning curves: what a rule of early stopping, or a sampler, would have found and paid. No training.

Hypervolume is that of the front of the fully trained, up to the worst of the table moved out by a tenth of its range, as a
share of the whole table's. Intervals hold 95 % of the repeats: where one study may fall, not how well the mean is known.
"""
