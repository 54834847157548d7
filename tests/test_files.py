"""Files of one's own: replaced at once, forced to the disk first, and nothing left behind by whoever was killed."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nas.disk import files
from nas.errors import InputError

LEFT = "record.json.{host}.{pid}.partial"


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_content_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    path, order, force, replace = tmp_path / "record.json", [], os.fsync, Path.replace

    def forced(handle):
        order.append(("forced", os.readlink(f"/proc/self/fd/{handle}") if os.path.exists("/proc/self/fd") else ""))
        force(handle)

    def replaced(partial, target):
        order.append(("replaced", str(partial)))
        return replace(partial, target)

    monkeypatch.setattr(os, "fsync", forced)
    monkeypatch.setattr(Path, "replace", replaced)
    files.write_json(path, {"a": [1, None], "b": {}})
    assert [step for step, _ in order] == ["forced", "replaced", "forced"]  # the file, its name, and its folder
    if os.path.exists("/proc/self/fd"):
        assert order[0][1] == order[1][1] and order[2][1] == str(tmp_path)
    assert json.loads(path.read_text()) == {"a": [1, None], "b": {}} and len(path.read_text().splitlines()) == 4


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "record.json"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as partial:
        partial.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path, ended):
    path = tmp_path / "record.json"
    dead = tmp_path / LEFT.format(host=platform.node(), pid=ended)
    living = [LEFT.format(host=platform.node(), pid=os.getppid()), LEFT.format(host="elsewhere", pid=ended)]
    for left in (dead, *(tmp_path / name for name in living)):
        left.write_text("half")
    files.write_text(path, "new")
    assert {each.name for each in tmp_path.iterdir()} == {"record.json", *living}


@pytest.mark.parametrize("name", ["a[1].html", "*.json"])
def test_names_are_no_patterns(tmp_path, ended, name):
    other = tmp_path / f"a1.html.{platform.node()}.{ended}.partial"
    other.write_text("half")
    files.write_text(tmp_path / name, "new")
    assert other.exists() and (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty, expected JSON"),
        (b'{"a": ', "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[" * 100_000, "expected JSON"),
        (b"[1]", "expected a JSON object, got list"),
    ],
)
def test_what_is_no_json_object_is_one_line(tmp_path, content, words):
    path = tmp_path / "conditions.json"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        files.read_object(path)
    assert str(path) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)


def test_yaml_comes_back_and_what_is_none_is_one_line(tmp_path):
    path, value = tmp_path / "resolved.yaml", {"b": [1, 2.5, None], "a": {"text": "größer: 3"}}
    files.write_yaml(path, value)
    assert files.read_yaml(path) == value and list(files.read_yaml(path)) == ["b", "a"]
    for content, words in {"": "got NoneType", "a: [1": "not valid YAML", "- 1": "got list"}.items():
        path.write_text(content)
        with pytest.raises(InputError, match=words):
            files.read_yaml(path)
