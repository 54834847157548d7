"""A study's name is one folder below runs/ on every file system."""

import re

import pytest

from nas.documents import study_name
from nas.errors import InputError
from nas.settings import study_file

STUDY = """
space: mobilediffusion
dataset: emoji
search: {minimise: [macs]}
"""
GOOD = [
    "quickstart",
    "a",
    "2026",
    "ranks.v2",
    "a b",
    "größe",
    "re\u0301sume\u0301",
    "研究",
    "ffn_ratio+lora-32",
    "x" * 100,
]
BAD = [
    "",
    ".",
    "..",
    "../escaped",
    "/abs",
    "a/b",
    "a\\b",
    ".hidden",
    "-rf",
    "_x",
    " a",
    "a ",
    "a.",
    "a\nb",
    "a\n",
    "a\tb",
]
BAD += [
    "a:b",
    "a*",
    'a"b',
    "a'b",
    "$(id)",
    "a;b",
    "a|b",
    "~",
    "a\x00b",
    "a\u202eb",
    "a\ud800b",
    "x" * 101,
    "研" * 34,
    "x" * 300,
]


@pytest.mark.parametrize("name", GOOD)
def test_a_folders_name_is_taken_as_it_is(tmp_path, name):
    path = tmp_path / "s" / "study.yaml"
    path.parent.mkdir()
    path.write_text(STUDY)
    loaded = study_file.load(path, [f"name={name!r}"])
    assert loaded.name == name
    (tmp_path / loaded.name).mkdir()
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(["s", name])


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_one_line(name):
    assert not study_name.fits(name)
    with pytest.raises(ValueError, match="expected the name of a folder") as error:
        study_name.checked(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("given", ["name: ../escaped\n", ""])
def test_file_and_line_are_told_by_every_reader_of_the_name(tmp_path, given):
    """Without a name it is the folder's, which may be none either."""
    path = tmp_path / "a:b" / "study.yaml"
    path.parent.mkdir()
    path.write_text(given + STUDY.lstrip())
    shown = "../escaped" if given else "a:b"
    for read in (study_file.load, study_name.of):
        with pytest.raises(InputError) as error:
            read(path.parent)
        assert re.match(rf"{re.escape(str(path))}:\d+: name: ", str(error.value))
        assert repr(shown) in str(error.value)
    assert list(tmp_path.rglob("*")) == [path.parent, path]
