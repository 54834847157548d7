"""How a command ends when the disk is full."""

import os
from contextlib import redirect_stderr

import free_study
import pytest
import small_disk
import torch
from safetensors.torch import save_file

from nas import cli


def on_a_full_disk(disk, folder):
    """In a child: a command that saves weights, and what it leaves on standard error."""
    try:
        small_disk.mount(disk, 100)
    except small_disk.Unavailable:
        return (folder / "unavailable").touch()
    cli.app = lambda **_: save_file({"weight": torch.zeros(100_000)}, disk / "weights.safetensors")
    with (folder / "said").open("w") as said, redirect_stderr(said), pytest.raises(SystemExit) as left:
        cli.main()
    (folder / "code").write_text(str(left.value.code))


def test_a_full_disk_under_safetensors_is_one_line(tmp_path):
    (disk := tmp_path / "disk").mkdir()
    os.waitpid(free_study.forked(on_a_full_disk, disk, tmp_path), 0)
    if (tmp_path / "unavailable").exists():
        pytest.skip("this user may not mount a small disk")
    (line,) = (tmp_path / "said").read_text().splitlines()
    assert line.startswith("nas: no space left on device") and "the same command goes on" in line
    assert (tmp_path / "code").read_text() == "1"


def test_another_error_is_not_taken_for_it(monkeypatch):
    def fails(**_):
        raise OSError("no such device")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(OSError, match="no such device"):
        cli.main()
