import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from nas import menu
from nas.datasets import BATCH, coco, emoji, folder, scenes, split_of, webdataset
from nas.errors import InputError

PICTURES = 100
SIZE = 16


def colour_of(number):
    return (37 * number) % 256, (91 * number) % 256, (53 * number) % 256


def caption_of(number):
    return f"picture {number}"


def encoded(number, kind, size=(24, 20)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour_of(number)).save(buffer, kind, quality=95)
    return buffer.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


# --- one maker per dataset: a small one of its kind, as the settings that load it -------------------------------------


def make_webdataset(path):
    """Two shards as img2dataset writes them; captions in JSON in the first, in text files in the second."""
    path.mkdir()
    for shard in range(2):
        with tarfile.open(path / f"{shard:05}.tar", "w") as tar:
            for number in range(shard * PICTURES // 2, (shard + 1) * PICTURES // 2):
                key = f"{number:09}"
                if shard == 0:
                    add(tar, f"{key}.webp", encoded(number, "WEBP"))
                    add(tar, f"{key}.json", json.dumps({"caption": caption_of(number), "url": "x"}).encode())
                else:
                    add(tar, f"{key}.jpg", encoded(number, "JPEG"))
                    add(tar, f"{key}.txt", caption_of(number).encode())
    return webdataset.Settings(path=path, image_size=SIZE, held_out=0.3)


def make_folder(path):
    path.mkdir()
    lines = []
    for number in range(PICTURES):
        (path / f"{number}.png").write_bytes(encoded(number, "PNG"))
        lines.append(json.dumps({"file_name": f"{number}.png", "text": caption_of(number)}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder.Settings(path=path, image_size=SIZE, held_out=0.3)


def make_coco(path):
    path.mkdir()
    for number in range(PICTURES):
        (path / f"{number}.jpg").write_bytes(encoded(number, "JPEG"))
    images = [{"id": 1000 + number, "file_name": f"{number}.jpg"} for number in range(PICTURES)]
    first = [{"image_id": 1000 + number, "caption": f" {caption_of(number)}\n"} for number in range(PICTURES)]
    second = [{"image_id": 1000 + number, "caption": "another caption"} for number in range(PICTURES)]
    annotations = path / "captions.json"
    annotations.write_text(json.dumps({"images": images, "annotations": first + second}))
    return coco.Settings(path=path, annotations=annotations, image_size=SIZE, held_out=0.3)


MAKERS = {
    "webdataset": make_webdataset,
    "folder": make_folder,
    "coco": make_coco,
    "emoji": lambda path: emoji.Settings(image_size=SIZE, limit=PICTURES),
    "scenes": lambda path: scenes.Settings(
        image_size=SIZE, sizes=["large"], pictures=PICTURES, held_out_pictures=PICTURES
    ),
}


# --- every dataset ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=menu.names("datasets"))
def made(request, tmp_path):
    """(module, settings) of every file in the menu; a new one needs a maker here."""
    return menu.pick("datasets", request.param), MAKERS[request.param](tmp_path / "made")


def captions_in(batches):
    return [caption for batch in batches for caption in batch.captions]


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_batches_are_pictures_with_captions(made, split):
    module, settings = made
    batches = list(module.load(settings, split))
    assert [len(batch.images) for batch in batches[:-1]] == [BATCH] * (len(batches) - 1)
    for batch in batches:
        assert batch.images.shape[1:] == (3, SIZE, SIZE) and batch.images.dtype == torch.float32
        assert batch.images.min() >= -1 and batch.images.max() <= 1
        assert len(batch.images) == len(batch.captions) == len(batch.keys)
        assert all(batch.captions)
    keys = [key for batch in batches for key in batch.keys]
    assert len(set(keys)) == len(keys)


def test_the_order_is_fixed(made):
    module, settings = made
    pictures = module.load(settings, "train")
    first, second, fresh = list(pictures), list(pictures), list(module.load(settings, "train"))
    for other in (second, fresh):
        assert [batch.keys for batch in first] == [batch.keys for batch in other]
        assert [batch.captions for batch in first] == [batch.captions for batch in other]
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, other, strict=True))


def test_no_caption_is_in_both_splits(made):
    module, settings = made
    if module is scenes:
        pytest.skip("its captions leave so much open that pictures differ: tests/test_scenes.py")
    train, held_out = (set(captions_in(module.load(settings, split))) for split in ("train", "held_out"))
    assert train and held_out and not train & held_out


def test_unknown_settings_are_refused(made):
    module, settings = made
    with pytest.raises(ValueError, match="image_sizes"):
        module.Settings(**settings.model_dump(), image_sizes=3)


@pytest.mark.parametrize("maker", [make_webdataset, make_folder, make_coco])
def test_every_picture_comes_once_under_its_own_caption(maker, tmp_path):
    settings = maker(tmp_path / "made")
    module = menu.pick("datasets", maker.__name__.removeprefix("make_"))
    found = {}
    for split in ("train", "held_out"):
        for batch in module.load(settings, split):
            found |= dict(zip(batch.captions, batch.images, strict=True))
    assert set(found) == {caption_of(number) for number in range(PICTURES)}
    for number in range(PICTURES):
        drawn = (found[caption_of(number)].mean((1, 2)) + 1) * 127.5
        assert drawn.tolist() == pytest.approx(colour_of(number), abs=4)  # lossy formats


@pytest.mark.parametrize("maker", [make_webdataset, make_folder, make_coco])
def test_a_corrupt_picture_is_named(maker, tmp_path):
    settings = maker(tmp_path / "made")
    for name in ("7.png", "7.jpg"):
        if (settings.path / name).exists():
            (settings.path / name).write_bytes(b"no picture")
    if maker is make_webdataset:
        with tarfile.open(settings.path / "00002.tar", "w") as tar:
            add(tar, "7.jpg", b"no picture")
            add(tar, "7.txt", caption_of(7).encode())
    module = menu.pick("datasets", maker.__name__.removeprefix("make_"))
    with pytest.raises(InputError, match=r"\b7(\.png|\.jpg|')"):
        list(module.load(settings, split_of(caption_of(7), 0.3)))


# --- what they share -------------------------------------------------------------------------------------------------


def test_the_held_out_share_is_kept():
    share = sum(split_of(f"caption {number}", 0.1) == "held_out" for number in range(5000)) / 5000
    assert share == pytest.approx(0.1, abs=0.015)  # 3.5 standard deviations
    assert {split_of(f"caption {number}", 0.0) for number in range(100)} == {"train"}


# --- emoji -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records():
    return {key: json.loads(sample["json"]) for key, sample in webdataset.samples(emoji.SHARD)}


def test_emoji_counts(records):
    styles = [record["style"] for record in records.values()]
    assert len(records) == 5664
    assert {style: styles.count(style) for style in set(styles)} == {"noto": 1906, "twemoji": 1906, "fluent": 1852}


def test_a_tenth_of_the_emoji_names_is_held_out_in_every_style(records):
    splits = {}
    for record in records.values():
        splits.setdefault(record["caption"], set()).add(record["split"])
    assert all(len(both) == 1 for both in splits.values())
    assert sum(both == {"held_out"} for both in splits.values()) == round(0.1 * len(splits))
    held_out = {record["style"] for record in records.values() if record["split"] == "held_out"}
    assert held_out == {"noto", "twemoji", "fluent"}


def test_emoji_splits_are_the_whole_set(records):
    train, held_out = ([item.key for item in emoji.Emoji(emoji.Settings(), split)] for split in ("train", "held_out"))
    assert sorted(train + held_out) == sorted(records)


def test_emoji_pictures_fill_64_pixels():
    batch = next(iter(emoji.load(emoji.Settings(limit=8), "train")))
    assert batch.images.shape == (8, 3, 64, 64)
    assert (batch.images[:, :, 0, 0] > 0.9).all()  # drawn on white


def test_emoji_captions_are_put_together_as_asked(records):
    settings = emoji.Settings(styles=("fluent",), captions=("style", "category", "name", "keywords"), limit=3)
    items = list(emoji.Emoji(settings, "train"))
    assert len(items) == 3
    for item in items:
        record = records[item.key]
        parts = [record["style"], record["category"], record["caption"], *record["keywords"]]
        assert item.caption == ", ".join(parts) and record["style"] == "fluent"


# --- webdataset ------------------------------------------------------------------------------------------------------


def spoil(path, how):
    """Damage a shard; what happens to it is the test's name."""
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "not a tar":
        path.write_bytes(b"<html>404</html>" * 100)
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2 + 100])
    elif how == "damaged header":
        middle = content.index(b"000000020.webp")
        path.write_bytes(content[:middle] + b"\xff" * 512 + content[middle + 512 :])
    elif how == "empty":
        path.write_bytes(b"")


def pattern(settings):
    """The shards by number, so that a missing one is noticed."""
    return settings.model_copy(update={"path": settings.path / "{00000..00001}.tar"})


SPOILT = ["missing", "not a tar", "truncated", "damaged header", "empty"]


@pytest.mark.parametrize("how", SPOILT)
def test_an_unreadable_shard_is_named(how, tmp_path):
    settings = pattern(make_webdataset(tmp_path / "made"))
    spoil(tmp_path / "made" / "00000.tar", how)
    with pytest.raises(InputError, match=r"00000\.tar.*skip_corrupt"):
        list(webdataset.load(settings, "train"))


@pytest.mark.parametrize("how", SPOILT)
def test_unreadable_shards_are_skipped_and_counted_when_asked(how, tmp_path, caplog):
    settings = pattern(make_webdataset(tmp_path / "made")).model_copy(update={"skip_corrupt": True})
    spoil(tmp_path / "made" / "00000.tar", how)
    shards = webdataset.Shards(settings, "train")
    captions = [item.caption for item in shards]
    whole = [caption_of(n) for n in range(PICTURES // 2, PICTURES) if split_of(caption_of(n), 0.3) == "train"]
    assert captions[-len(whole) :] == whole  # the other shard is read to its end
    assert shards.skipped >= 1 and f"skipped {shards.skipped} unreadable" in caplog.text


SAMPLES = {
    "no picture": {"txt": b"a"},
    "no caption": {"jpg": encoded(0, "JPEG")},
    "no caption in the json": {"jpg": encoded(0, "JPEG"), "json": b"{}"},
    "json cut off": {"jpg": encoded(0, "JPEG"), "json": b'{"caption": "a'},
    "json is a list": {"jpg": encoded(0, "JPEG"), "json": b"[1]"},
    "json nested too deep": {"jpg": encoded(0, "JPEG"), "json": b'{"caption": ' + b"[" * 100_000},
    "json cut off beside text": {"jpg": encoded(0, "JPEG"), "json": b'{"caption": "a', "txt": b"a"},
    "NUL in text": {"jpg": encoded(0, "JPEG"), "txt": b"a\0"},
    "half a letter": {"jpg": encoded(0, "JPEG"), "json": b'{"caption": "\\udc00"}'},
    "picture of another format": {"png": encoded(0, "PPM"), "txt": b"a"},
    "picture under a longer extension": {"mask.png": encoded(0, "PNG"), "txt": b"a"},
    "text is not utf-8": {"jpg": encoded(0, "JPEG"), "txt": b"\xff\xfe"},
    "picture cut off": {"jpg": encoded(0, "JPEG", (64, 64))[:200], "txt": b"a"},
    "picture is html": {"jpg": b"<html>", "txt": b"a"},
}


@pytest.mark.parametrize("what", SAMPLES)
def test_an_unreadable_sample_is_named_or_skipped(what, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for extension, content in {"jpg": encoded(1, "JPEG"), "txt": b"good"}.items():
            add(tar, f"good.{extension}", content)
        for extension, content in SAMPLES[what].items():
            add(tar, f"bad.{extension}", content)
    settings = webdataset.Settings(path=tmp_path / "shard.tar", image_size=SIZE, held_out=0)
    with pytest.raises(InputError, match=r"shard\.tar.*'bad'"):
        list(webdataset.load(settings, "train"))
    pictures = webdataset.load(settings.model_copy(update={"skip_corrupt": True}), "train")
    assert captions_in(pictures) == ["good"] and pictures.items.skipped == 1
    assert captions_in(pictures) == ["good"] and pictures.items.skipped == 1  # counted anew


def test_limit_counts_both_splits(tmp_path):
    settings = make_webdataset(tmp_path / "made").model_copy(update={"limit": 60})
    counts = [len(captions_in(webdataset.load(settings, split))) for split in ("train", "held_out")]
    assert sum(counts) == 60 and all(counts)


# --- folder and coco -------------------------------------------------------------------------------------------------

LINES = {
    "cut off": '{"file_name": "0.png", "te',
    "no caption": '{"file_name": "0.png"}',
    "no file": '{"text": "a"}',
    "missing picture": '{"file_name": "nowhere.png", "text": "a"}',
    "a list": "[1, 2]",
    "a number": "3",
    "caption is a number": '{"file_name": "0.png", "text": 3}',
    "caption is null": '{"file_name": "0.png", "text": null}',
    "file is null": '{"file_name": null, "text": "a"}',
    "nested too deep": "[" * 100_000,
    "a name that leaves the folder": '{"file_name": "../made/0.png", "text": "a"}',
    "a name from the root": '{"file_name": "/dev/zero", "text": "a"}',
    "a folder": '{"file_name": ".", "text": "a"}',
    "NUL in a name": '{"file_name": "0.png\\u0000", "text": "a"}',
    "half a letter in a name": '{"file_name": "\\ud800.png", "text": "a"}',
    "an escape in a name": '{"file_name": "\\u001b[2J\\n.png", "text": "a"}',
    "NUL in a caption": '{"file_name": "0.png", "text": "a\\u0000"}',
    "half a letter in a caption": '{"file_name": "0.png", "text": "\\ud83d a"}',
}


@pytest.mark.parametrize("what", LINES)
def test_a_bad_line_of_metadata_is_named(what, tmp_path):
    settings = make_folder(tmp_path / "made").model_copy(update={"held_out": 0.0})
    metadata = tmp_path / "made" / "metadata.jsonl"
    metadata.write_text(metadata.read_text().splitlines()[0] + "\n\n" + LINES[what])
    with pytest.raises(InputError, match=r"metadata\.jsonl:3: ") as caught:
        list(folder.load(settings, "train"))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_folder_needs_its_metadata(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.jsonl does not exist"):
        folder.load(folder.Settings(path=tmp_path), "train")
    (tmp_path / "metadata.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        list(folder.load(folder.Settings(path=tmp_path), "train"))


def test_only_line_feeds_end_a_line_of_metadata(tmp_path):
    settings = make_folder(tmp_path / "made").model_copy(update={"held_out": 0.0})
    record = {"file_name": "0.png", "text": "a\u2028b\x85c"}
    (tmp_path / "made" / "metadata.jsonl").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    assert captions_in(folder.load(settings, "train")) == [record["text"]]


ANNOTATIONS = {
    "not json": "{",
    "a list": "[]",
    "no images": '{"annotations": []}',
    "no annotations": '{"images": []}',
    "images are numbers": '{"images": [1], "annotations": []}',
    "annotations are null": '{"images": [], "annotations": null}',
    "no caption": '{"images": [], "annotations": [{"image_id": 1}]}',
    "id is a word": '{"images": [{"id": "a", "file_name": "0.jpg"}], "annotations": []}',
    "id is a fraction": '{"images": [{"id": 1.5, "file_name": "0.jpg"}], "annotations": []}',
    "id is infinite": '{"images": [{"id": 1e999, "file_name": "0.jpg"}], "annotations": []}',
    "id is true": '{"images": [{"id": true, "file_name": "0.jpg"}], "annotations": []}',
    "two pictures of one id": '{"images": [{"id": 1, "file_name": "0.jpg"}, {"id": 1, "file_name": "1.jpg"}], "annotations": []}',
    "a name that leaves the folder": '{"images": [{"id": 1, "file_name": "../0.jpg"}], "annotations": []}',
    "no name": '{"images": [{"id": 1, "file_name": 3}], "annotations": []}',
    "nested too deep": '{"images": ' + "[" * 100_000,
}


@pytest.mark.parametrize("what", ANNOTATIONS)
def test_bad_annotations_are_named(what, tmp_path):
    path = tmp_path / "captions.json"
    path.write_text(ANNOTATIONS[what])
    with pytest.raises(InputError, match=r"annotations: .*captions\.json"):
        coco.load(coco.Settings(path=tmp_path, annotations=path), "train")


def test_missing_coco_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read"):
        coco.load(coco.Settings(path=tmp_path, annotations=tmp_path / "nowhere.json"), "train")
    settings = make_coco(tmp_path / "made")
    (tmp_path / "made" / "5.jpg").unlink()
    with pytest.raises(InputError, match=r"5\.jpg: named in .*captions\.json"):
        list(coco.load(settings, split_of(caption_of(5), 0.3)))


def test_coco_pictures_without_a_caption_are_left_out(tmp_path):
    path = tmp_path / "captions.json"
    path.write_text('{"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": []}')
    assert list(coco.load(coco.Settings(path=tmp_path, annotations=path), "train")) == []
