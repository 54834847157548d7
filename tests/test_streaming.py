"""What an update of nas train sees: pictures in windows, shared by processes, resumed, and gradients accumulated."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from nas import interruption
from nas.datasets import Captioned, Pictures
from nas.errors import InputError
from nas.networks.conditioning import Text
from nas.objectives import LatentBatch
from nas.settings.training import Training
from nas.training import loop, streaming
from nas.training.batches import Batches
from nas.training.encoded import encode
from nas.training.loop import DenoiserTraining
from nas.training.streaming import Frozen, Place, Reading, Stream


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Also where there is a GPU: what is compared here is exact. Signals are left to pytest."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(interruption, "install_in_trainer", lambda: None)


class Autoencoder:
    """Latents are the mean colours of 4x4 pixels."""

    factor, channels, image_size, seen = 4, 3, 8, 0

    def to(self, device):
        return self

    def encode(self, images):
        self.seen += len(images)
        return nn.functional.avg_pool2d(images, 4)


class Encoder:
    width = pooled_width = 2
    length = 3

    def to(self, device):
        return self

    def encode(self, captions):
        numbers = torch.tensor([float(len(caption)) for caption in captions])
        return Text(numbers[:, None, None].expand(-1, 3, 2), numbers[:, None].expand(-1, 2))


def png(shade):
    import io

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 255 - shade, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count, broken=()):
    """Picture i is of shade i and has a caption of length i + 1."""
    items = [Captioned(str(i), "x" * (i + 1), b"?" if i in broken else png(i), str(i)) for i in range(count)]
    unreadable = []
    return Pictures(items, 8, unreadable.append)


def stream(count, start, stop, batch=4, window=12, **kwargs):
    how = Reading(batch, caption_dropout=0.25, seed=5, window=window, threads=2)
    return Stream(pictures(count, **kwargs), Frozen(Autoencoder(), Encoder()), how, start, stop)


def shades(batch):
    return [round((float(latent[0, 0, 0]) + 1) * 127.5) for latent in batch.latents]


def same(one, other):
    values = [
        (*batch.text, batch.latents, torch.tensor(batch.update), batch.generator.get_state()) for batch in (one, other)
    ]
    return all(torch.equal(a, b) for a, b in zip(*values, strict=True))


# --- what an update sees ---------------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(0, 60))
def test_passes_without_the_beginning(size, skip):
    found = streaming.passes(list(range(size)), skip)
    expected = itertools.islice(itertools.cycle(range(size)), skip, None)
    assert list(itertools.islice(found, 20)) == list(itertools.islice(expected, 20))


def test_a_set_that_fits_is_what_trials_see_and_is_encoded_once():
    made = stream(10, 0, 9, window=12)
    data = encode(pictures(10), Autoencoder(), Encoder())
    expected = list(Batches(data, Training(batch=4, caption_dropout=0.25), 5, 0, 9))
    found = list(made)
    assert len(found) == 9 and all(map(same, found, expected))
    assert made.frozen.autoencoder.seen == 10


def test_windows_are_passed_over_in_order_and_shuffled():
    found = list(stream(30, 0, 9))  # three windows of 12: pictures 0-11, 12-23, and 24-29 with 0-5 of the next pass
    seen = [sum((shades(batch) for batch in found[first : first + 3]), []) for first in (0, 3, 6)]
    assert [sorted(window) for window in seen] == [
        list(range(12)),
        list(range(12, 24)),
        sorted([*range(24, 30), *range(6)]),
    ]
    assert any(window != sorted(window) for window in seen)
    for batch in found:  # captions belong to their pictures, but where they were dropped
        lengths = [int(length) for length in batch.text.pooled[:, 0]]
        assert all(length in (0, shade + 1) for length, shade in zip(lengths, shades(batch), strict=True))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 14), st.sampled_from([10, 12, 13, 30]))
def test_a_stream_that_is_resumed_is_the_uninterrupted_one(start, count):
    whole = list(stream(count, 0, 15))
    resumed = list(stream(count, start, 15))
    assert len(resumed) == 15 - start and all(map(same, resumed, whole[start:]))


def test_processes_share_the_pictures(monkeypatch):
    shares = []
    for rank in range(2):
        monkeypatch.setattr(Place, "here", classmethod(lambda cls, rank=rank: Place(rank, 2)))
        shares.append(list(stream(24, 0, 3)))
    seen = [shade for share in shares for batch in share for shade in shades(batch)]
    assert sorted(seen) == list(range(12))
    assert all(len(batch.latents) == 2 for share in shares for batch in share)
    noises = [torch.randn(4, generator=share[0].generator) for share in shares]
    assert not torch.equal(*noises)


def test_unreadable_pictures_are_left_out_and_none_is_an_error():
    made = stream(10, 0, 4, broken=(3,))
    assert 3 not in sum(map(shades, made), [])
    with pytest.raises(InputError, match="no readable picture"):
        list(stream(2, 0, 1, broken=(0, 1)))
    with pytest.raises(InputError, match="no readable picture"):
        list(stream(0, 0, 1))
    with pytest.raises(InputError, match="training split is empty"):
        next(streaming.passes([], 3))


# --- accumulated gradients -------------------------------------------------------------------------------------------


class Mean(nn.Module):
    """A loss without randomness."""

    requires, critics, schedule_config = frozenset(), {}, {}

    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(12, 1)
        self.generator.weight.data = torch.linspace(-1, 1, 12)[None]
        self.generator.bias.data.zero_()
        self.logged, self.sizes = {}, []

    def generator_loss(self, batch):
        self.sizes.append(len(batch.latents))
        return (self.generator(batch.latents.flatten(1)) - batch.text.pooled[:, :1]).square().mean()

    def after_step(self):
        pass


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    made = []
    for pieces in (1, parts):
        module = DenoiserTraining(Mean(), Training(batch=8, warmup_images=0, learning_rate=0.1), parts=pieces)
        loop.fit(module, stream(20, 0, 3, batch=8, window=8), 3)
        made.append(module)
    for one, other in zip(*(m.objective.parameters() for m in made), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert made[0].logged() == pytest.approx(made[1].logged(), rel=1e-4)
    assert max(made[1].objective.sizes) == -(-8 // parts) and sum(made[1].objective.sizes) == 24


def test_pieces_are_the_batch():
    text = Text(torch.randn(5, 2, 2), torch.randn(5, 2))
    batch = LatentBatch(torch.randn(5, 1, 2, 2), text, Text(text.tokens[:1], text.pooled[:1]), torch.Generator(), 3)
    pieces = batch.split(2)
    assert [len(piece.latents) for piece in pieces] == [3, 2] and {piece.update for piece in pieces} == {3}
    assert torch.equal(torch.cat([piece.latents for piece in pieces]), batch.latents)
    assert torch.equal(torch.cat([piece.text.tokens for piece in pieces]), text.tokens)
