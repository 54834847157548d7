"""Encoding a data set: side by side, and as if one after another."""

import threading
import time

import pytest
import torch

from nas.datasets import Batch
from nas.training import encoded


class Autoencoder:
    """Slow for early batches, so that later ones end before them."""

    def __init__(self):
        self.threads, self.ended = set(), 0

    def encode(self, images):
        self.threads.add((threading.get_ident(), torch.get_num_threads()))
        time.sleep(0.02 / (1 + float(images[0, 0, 0, 0])))
        self.ended += 1
        return torch.nn.functional.avg_pool2d(images, 2) * 3


@pytest.mark.parametrize("cores", [1, 3])
def test_batches_come_out_as_one_after_another_and_few_wait(monkeypatch, cores):
    monkeypatch.setattr(encoded, "cores", lambda: cores)
    autoencoder, begun = Autoencoder(), []

    def batches():
        for index in range(20):
            begun.append(index)
            assert len(begun) - autoencoder.ended <= 2 * cores + 2
            yield Batch(torch.full((2, 3, 4, 4), float(index)), [f"{index} a", f"{index} b"], [])

    latents, captions = encoded.encode_images(batches(), autoencoder)
    assert latents.equal(torch.arange(20.0).repeat_interleave(2).view(-1, 1, 1, 1).expand(-1, 3, 2, 2) * 3)
    assert captions == [f"{index} {name}" for index in range(20) for name in "ab"]
    assert len(autoencoder.threads) <= cores and {count for _, count in autoencoder.threads} == {1}


def test_what_fails_is_raised(monkeypatch):
    monkeypatch.setattr(encoded, "cores", lambda: 2)
    autoencoder = Autoencoder()
    autoencoder.encode = lambda images: images.view(7, -1)
    with pytest.raises(RuntimeError, match="invalid for input"):
        encoded.encode_images([Batch(torch.zeros(2, 3, 4, 4), ["a", "b"], [])] * 9, autoencoder)


def test_nothing_is_nothing():
    assert encoded.encode_images([], Autoencoder())[0].shape == (0,)
