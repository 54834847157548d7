"""What people prefer: imscore's scorers on files of one's own, beside transformers and open_clip."""

import contextlib
import json
import socket

import pytest
import tiny_preference
import torch
import torchvision.transforms.v2.functional as images
from PIL import Image
from safetensors.torch import load_file, save_file

from nas import menu
from nas.deploy import score as scoring
from nas.errors import InputError
from nas.metrics import Reference, hps, pickscore, scores
from nas.networks.conditioning import clip

pytest.importorskip("imscore", reason="nas[preference] is not installed")
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
CAPTIONS = ["a red heart", "pizza", "violin"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("tiny") / name) for name, make in tiny_preference.FOLDERS.items()}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def connect(*_):
        raise AssertionError("something is fetched")

    monkeypatch.setattr(socket.socket, "connect", connect)


def pictures(size=224):
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normalised(drawn):
    return images.normalize(drawn / 2 + 0.5, MEAN, STD)


def found(module, folder, drawn, captions=CAPTIONS):
    metric = module.build(module.Settings(weights=folder), Reference(list))
    (value,) = scores([metric], [(drawn, captions)]).values()
    return value


def test_pickscore_is_the_scaled_cosine_of_transformers(folders):
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(folders["pickscore"]).eval()
    tokens = AutoTokenizer.from_pretrained(folders["pickscore"])(CAPTIONS, padding=True, return_tensors="pt")
    drawn = pictures()
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixel_values=normalised(drawn)).pooler_output)
        read = model.text_projection(
            model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        )
        cosines = torch.cosine_similarity(seen, read)
        expected = (model.logit_scale.exp() * cosines).mean()
    assert cosines.std() > 0.01  # so that a caption beside another picture would be seen
    assert found(pickscore, folders["pickscore"], drawn) == pytest.approx(float(expected), abs=1e-6)


def test_hps_is_the_cosine_of_open_clip(folders):
    model, tokenizer = clip.load(folders["hps"])
    drawn = pictures()
    with torch.no_grad():
        cosines = torch.cosine_similarity(model.encode_image(normalised(drawn)), model.encode_text(tokenizer(CAPTIONS)))
    assert cosines.std() > 0.001
    assert found(hps, folders["hps"], drawn) == pytest.approx(float(cosines.mean()), abs=1e-6)


@pytest.mark.parametrize("module", [pickscore, hps])
def test_pictures_of_another_size_are_resized_as_for_every_metric(folders, module):
    folder = folders[module.__name__.split(".")[-1]]
    small = pictures(32)
    large = torch.nn.functional.interpolate(small, size=(224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
    assert found(module, folder, small) == pytest.approx(found(module, folder, large), abs=1e-6)


def test_a_folder_of_pictures_is_scored(folders, tmp_path):
    said = "\n".join(CAPTIONS)
    (tmp_path / "said.txt").write_text(said)
    for number, picture in enumerate(pictures(32)):
        images.to_pil_image(((picture + 1) / 2 * 255).round().byte()).save(tmp_path / f"{number}.png")
    metrics = ",".join(f"{{name: {name}, weights: {folder}}}" for name, folder in folders.items())
    rows = scoring.score([tmp_path], scoring.Asked(metrics, captions=tmp_path / "said.txt"), lambda line: None)
    assert [row.column for row in rows] == ["pickscore", "hps"]
    again = torch.stack([images.pil_to_tensor(Image.open(tmp_path / f"{n}.png")) for n in range(3)]) / 127.5 - 1
    assert rows[0].value == pytest.approx(found(pickscore, folders["pickscore"], again), abs=1e-5)
    assert all(row.conditions["library"] == "imscore 0.0.11" and len(row.conditions["weights"]) == 12 for row in rows)


@pytest.mark.parametrize("name", ["pickscore", "hps"])
def test_missing_weights_say_which_from_where_and_where_to_put_them(folders, tmp_path, name):
    module = menu.pick("metrics", name)
    repository = {"pickscore": "huggingface.co/yuvalkirstain/PickScore_v1", "hps": "huggingface.co/xswu/HPSv2"}[name]
    for given in (None, tmp_path / "absent"):
        with pytest.raises(InputError, match="^weights: ") as caught:
            module.check(module.Settings(weights=given), CAPTIONS)
        told = str(caught.value)
        assert repository in told and "\n" not in told and (given is None or str(given) in told)


@pytest.mark.parametrize("absent", ["preprocessor_config.json", "tokenizer.json"])
def test_a_file_of_the_folder_that_is_absent_is_named(tmp_path, absent):
    folder = tiny_preference.pickscore(tmp_path / "tiny")
    (folder / absent).unlink()
    with pytest.raises(InputError, match=rf"tiny/{absent}: no such file; put there {absent} of huggingface.co/laion/"):
        pickscore.check(pickscore.Settings(weights=folder), CAPTIONS)


@pytest.mark.parametrize("how", ["weights of another network", "no weights at all", "another kind of model"])
def test_what_cannot_be_read_is_one_line(tmp_path, how):
    folder = tiny_preference.pickscore(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    if how == "weights of another network":
        held = load_file(weights)
        del held["logit_scale"]
        save_file(held, weights, {"format": "pt"})
    elif how == "no weights at all":
        weights.write_bytes(b"nothing")
    else:
        (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="^weights: .*tiny: cannot be read: ") as caught:
        pickscore.build(pickscore.Settings(weights=folder), Reference(list))
    assert "\n" not in str(caught.value)


def test_a_folders_python_does_not_run(tmp_path):
    folder = tiny_preference.pickscore(tmp_path / "tiny")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\nclass Own: pass\n")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        own = {"AutoConfig": "own.Own", "AutoModel": "own.Own", "AutoTokenizer": ["own.Own", None]}
        own |= {"AutoProcessor": "own.Own", "AutoImageProcessor": "own.Own"}
        (folder / name).write_text(json.dumps({**content, "auto_map": own}))
    with contextlib.suppress(InputError):
        pickscore.build(pickscore.Settings(weights=folder), Reference(list))
    assert not (tmp_path / "proof").exists()


def test_without_imscore_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setattr("nas.networks.preference.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"imscore: pip install 'nas\[preference\]'"):
        hps.check(hps.Settings(weights=folders["hps"]), CAPTIONS)
