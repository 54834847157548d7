"""`nas init`: what is told of a set against what was put into it, the study that is written, and what is refused."""

import io
import json
import tarfile

import pytest
from in_process import nas
from PIL import Image

from nas.datasets import split_of
from nas.errors import InputError
from nas.preparation import draft, survey
from nas.settings import study_file

CAPTIONS = [f"a card of {number} pieces" for number in range(40)]


def picture(number):
    kept = io.BytesIO()
    Image.new("RGB", (60 + number, 50 + 2 * number), (number, 2 * number, 3 * number)).save(kept, "PNG")
    return kept.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Forty pictures; and of one more caption each a broken one, a copy, and one of another alphabet."""
    to = tmp_path / "My Cards"
    to.mkdir()
    files = {f"{number}.png": (picture(number), caption) for number, caption in enumerate(CAPTIONS)}
    files |= {f"copy{number}.png": (picture(0), "a copy") for number in range(4)}
    files |= {"broken.png": (b"no picture", "a broken card"), "other.png": (picture(50), "карта " * 20)}
    for name, (data, _) in files.items():
        (to / name).write_bytes(data)
    lines = [json.dumps({"file_name": name, "text": caption}) for name, (_, caption) in files.items()]
    (to / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return to


def test_what_is_told_is_what_was_put_in(folder):
    section = survey.described(folder, None, 64, ["held_out=0.2"])
    found = survey.look(section, 1000)
    texts = [*CAPTIONS, *["a copy"] * 4, "a broken card", ("карта " * 20).strip()]
    assert found.whole and found.pictures == 46 and found.copies == 4 and found.captions.total() == 46
    assert found.held_out == sum(split_of(text, 0.2) == "held_out" for text in texts)
    assert sorted(found.sides) == sorted([min(60 + n, 50 + 2 * n) for n in range(40)] + [50] * 4 + [110])
    assert sorted(found.words) == sorted(len(text.split()) for text in texts) and found.other_letters == 1
    said = " ".join(found.warnings())
    assert (
        "broken.png: expected PNG" in said
        and "4 pictures are copies" in said
        and "1 captions have more than 15" in said
    )
    assert "letters beyond" not in said  # one of 46
    part = survey.look(section, 10)
    assert part.held_out == 1  # a long set is not taken for one without
    assert part.pictures == 10 and not part.whole and "the first 10 of more" in dict(part.lines())["pictures"]


def test_the_study_that_is_written_is_one_that_runs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = nas("init", str(folder), "--image-size", "32")
    path = tmp_path / "studies" / "my_cards" / "study.yaml"
    assert "next: nas prepare studies/my_cards" in told.stdout and "note: 1 picture cannot be read" in told.stdout
    study = study_file.load(path)
    assert study.dataset.name == "folder" and study.dataset.options["image_size"] == 32
    assert LEAST <= study.evaluation.images <= 46
    before = path.read_text()
    with pytest.raises(InputError, match="is there already"):
        draft.write(
            path.parent,
            survey.described(folder, None, 64, []),
            survey.look(survey.described(folder, None, 64, []), 100),
        )
    assert path.read_text() == before


LEAST = draft.LEAST_DRAWN


def test_as_many_are_scored_as_are_held_out_so_that_other_real_pictures_can_be_too():
    drawn = [
        draft._drawn(train, held_out) for train, held_out in ((1771, 224), (1771, 239), (9000, 900), (40, 5), (15, 5))
    ]
    assert drawn == [224, 224, 256, 16, 15]


def test_shards_are_found_by_folder_file_and_pattern(tmp_path):
    (tmp_path / "laion").mkdir()
    with tarfile.open(tmp_path / "laion" / "00000.tar", "w") as shard:
        for number in range(20):
            for name, data in ((f"{number}.png", picture(number)), (f"{number}.txt", CAPTIONS[number].encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                shard.addfile(entry, io.BytesIO(data))
    for path in ("laion", "laion/00000.tar", "laion/{00000..00000}.tar"):
        section = survey.described(tmp_path / path, None, 64, [])
        assert section["name"] == "webdataset" and survey.look(section, 100).pictures == 20
    assert [draft.name_for(tmp_path / path) for path in ("laion", "laion/{00000..00009}.tar", "laion/*.tar")] == [
        "laion"
    ] * 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"path": "nothing"}, ["nothing", "is not there", "metadata.jsonl"]),
        ({"path": "empty"}, ["empty", "no tar shards", "--annotations"]),
        ({"overrides": ["captionkey=x"]}, ["--set captionkey", "did you mean 'caption_key'"]),
        ({"overrides": ["caption_key"]}, ["--set caption_key", "expected key=value"]),
        ({"overrides": ["caption_key=title"]}, ["metadata.jsonl:1", "no 'title'", "file_name"]),
        ({"size": 66}, ["dataset.image_size", "66", "not divisible"]),
        ({"few": 12}, ["My Cards", "expected at least 16"]),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(folder, tmp_path, given, words):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        path = tmp_path / given["path"] if "path" in given else folder
        section = survey.described(path, None, given.get("size", 64), given.get("overrides", []))
        draft.write(tmp_path / "studies" / "new", section, survey.look(section, given.get("few", 100)))
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), str(caught.value)
    assert not (tmp_path / "studies" / "new").exists()
