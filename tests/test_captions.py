"""What data sets take for a caption, and for a file that holds one."""

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from nas import menu
from nas.datasets import coco, folder, webdataset
from nas.errors import InputError


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


PICTURE = picture()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def captions_in(batches):
    return [caption for batch in batches for caption in batch.captions]


# --- captions --------------------------------------------------------------------------------------------------------

CAPTIONS = {  # what stands where a caption should, and what is made of it; None: refused
    "text": (" a cat\n", "a cat"),
    "a list of texts": (["a cat", "a red cat"], "a cat"),
    "a list of one": (["a cat"], "a cat"),
    "an empty list": ([], None),
    "a list of other things": (["a cat", 3], None),
    "nested lists": ([["a cat"]], None),
    "an object": ({"en": "a cat"}, None),
    "a number": (3, None),
    "not a number": (float("nan"), None),
    "true": (True, None),
    "null": (None, None),
}


def with_caption(name, path, caption):
    """One picture with that in the place of its caption, as settings of a data set."""
    path.mkdir()
    (path / "0.png").write_bytes(PICTURE)
    if name == "webdataset":
        with tarfile.open(path / "0.tar", "w") as tar:
            add(tar, "0.png", PICTURE)
            add(tar, "0.json", json.dumps({"caption": caption}).encode())
    (path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": caption}))
    annotations = [{"image_id": 7, "caption": caption}]
    (path / "a.json").write_text(json.dumps({"images": [{"id": 7, "file_name": "0.png"}], "annotations": annotations}))
    more = {"annotations": path / "a.json"} if name == "coco" else {}
    return menu.pick("datasets", name).Settings(path=path, image_size=8, held_out=0, **more)


@pytest.mark.parametrize("what", CAPTIONS)
@pytest.mark.parametrize("name", ["webdataset", "folder", "coco"])
def test_a_caption_is_text_or_the_first_of_a_list_of_texts(name, what, tmp_path):
    given, expected = CAPTIONS[what]
    settings = with_caption(name, tmp_path / "made", given)
    module = menu.pick("datasets", name)
    if expected is not None:
        assert captions_in(module.load(settings, "train")) == [expected]
        return
    key = "text" if name == "folder" else "caption"
    place = {"webdataset": r"0\.tar: sample '0'", "folder": r"metadata\.jsonl:1", "coco": r"a\.json .*image 7"}[name]
    with pytest.raises(InputError, match=f"{place}: .*'{key}'"):
        list(module.load(settings, "train"))
    if name == "webdataset":
        skipping = module.load(settings.model_copy(update={"skip_corrupt": True}), "train")
        assert captions_in(skipping) == [] and skipping.items.skipped == 1


@pytest.mark.parametrize("identifier", ["7", "000007", 7.0])
def test_the_number_of_an_image_may_be_written_otherwise(identifier, tmp_path):
    settings = with_caption("coco", tmp_path / "made", "a cat")
    content = json.loads(settings.annotations.read_text())
    content["images"][0]["id"] = identifier
    settings.annotations.write_text(json.dumps(content))
    assert captions_in(coco.load(settings, "train")) == ["a cat"]


BOM = "\ufeff"


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    for name in ("folder", "coco"):
        settings = with_caption(name, tmp_path / name, "a cat")
        for file in (tmp_path / name / "metadata.jsonl", tmp_path / name / "a.json"):
            file.write_text(BOM + file.read_text(), encoding="utf-8")
        assert captions_in(menu.pick("datasets", name).load(settings, "train")) == ["a cat"]
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for key, extension, content in [("0", "txt", "a cat"), ("1", "json", '{"caption": "a dog"}')]:
            add(tar, f"{key}.png", PICTURE)
            add(tar, f"{key}.{extension}", (BOM + content).encode())
    shards = webdataset.load(webdataset.Settings(path=tmp_path / "shard.tar", held_out=0), "train")
    assert captions_in(shards) == ["a cat", "a dog"]


@pytest.mark.parametrize("beside", [{"url": "x"}, {"caption": None}, ["a dog"], 3])
def test_a_text_is_read_where_the_json_has_no_caption(beside, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        add(tar, "0.json", json.dumps(beside).encode())
        add(tar, "0.png", PICTURE)
        add(tar, "0.txt", b"a cat")
    shards = webdataset.load(webdataset.Settings(path=tmp_path / "shard.tar", held_out=0), "train")
    assert captions_in(shards) == ["a cat"]


# --- files that are none ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["/dev/zero", "a pipe", "a folder", "NUL"])
def test_only_regular_files_are_read(what, tmp_path):
    path = Path("/dev/zero") if what == "/dev/zero" else tmp_path / what
    if what == "a pipe":
        os.mkfifo(path)
    elif what == "a folder":
        path.mkdir()
    elif what == "NUL":
        path = tmp_path / "a\0b.tar"
    with pytest.raises(InputError, match=r"dataset\.annotations: .*not a"):
        coco.load(coco.Settings(path=tmp_path, annotations=path), "train")
    if what != "a folder":
        with pytest.raises(InputError, match="missing shard|corrupt shard: .*not a regular file"):
            list(webdataset.load(webdataset.Settings(path=path), "train"))
    settings = with_caption("folder", tmp_path / "made", "a cat")
    if what != "NUL":
        (tmp_path / "made" / "0.png").unlink()
        (tmp_path / "made" / "0.png").symlink_to(path)
        with pytest.raises(InputError, match=r"0\.png cannot be read: not a regular file"):
            list(folder.load(settings, "train"))


def test_a_file_is_read_up_to_what_a_picture_may_hold(tmp_path, monkeypatch):
    settings = with_caption("folder", tmp_path / "made", "a cat")
    monkeypatch.setattr(folder, "PICTURE", 10_000)
    with (tmp_path / "made" / "0.png").open("ab") as file:
        file.truncate(2**40)  # a hole: it takes no room on the disk
    with pytest.raises(InputError, match=r"0\.png cannot be read: more than 10,000 bytes"):
        list(folder.load(settings, "train"))
