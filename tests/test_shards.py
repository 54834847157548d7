"""Tar shards as samples: what belongs together, what belongs to none, and what a tar may claim."""

import gzip
import io
import logging
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from nas.datasets import webdataset
from nas.disk import shards
from nas.errors import InputError


def picture(colour=(200, 100, 50)):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def header(name, size, kind=b"0"):
    """A tar header that claims a size, which may be any number."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT))
    octal = (
        b"%011o\0" % size if 0 <= size < 8**11 else bytes([0xFF if size < 0 else 0x80]) + (size % 256**11).to_bytes(11)
    )
    block[124:136], block[156:157], block[148:156] = octal, kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, content=b"", kind=b"0"):
    return header(name, len(content), kind) + content + b"\0" * (-len(content) % 512)


def tar(*members):
    return b"".join(members) + b"\0" * 1024


def written(path, content):
    path.write_bytes(content)
    return path


GOOD = member("good.png", picture()) + member("good.txt", b"good")


def read(path, skip=False):
    """The captions of a shard, and how many of its samples were skipped."""
    how = webdataset.Settings(path=path, image_size=8, held_out=0, skip_corrupt=skip)
    pictures = webdataset.load(how, "train")
    return [caption for batch in pictures for caption in batch.captions], pictures.items.skipped


# --- which shards ----------------------------------------------------------------------------------------------------


def test_shards_are_found_by_folder_glob_and_braces(tmp_path, monkeypatch):
    made, more = ([tmp_path / folder / f"0000{i}.tar" for i in range(2)] for folder in ("made", "more"))
    for shard in (*made, *more, tmp_path / "made" / "._00000.tar"):  # the last is what a Mac leaves on other disks
        shard.parent.mkdir(exist_ok=True)
        shard.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert webdataset.shard_paths(tmp_path / "made") == made
    assert webdataset.shard_paths(tmp_path / "made" / "*.tar") == made
    assert webdataset.shard_paths(tmp_path / "made" / "{00000..00001}.tar") == made
    assert webdataset.shard_paths(made[0]) == made[:1]
    assert webdataset.shard_paths(tmp_path / "{more,made}" / "*.tar") == more + made
    assert webdataset.shard_paths(tmp_path / "{made,more}") == made + more
    assert webdataset.shard_paths(webdataset.Settings(path="~/made/*.tar").path) == made
    (tmp_path / "made").rename(tmp_path / "made {1} [2]")
    assert len(webdataset.shard_paths(tmp_path / "made {1} [2]")) == 2
    assert webdataset.shard_paths(tmp_path / "made {1} [2]" / "00000.tar")[0].exists()
    for missing in ("*.zip", "{a,b", "${nowhere}.tar"):
        with pytest.raises(InputError, match=r"dataset\.path: "):
            webdataset.shard_paths(tmp_path / missing)


# --- what belongs together -------------------------------------------------------------------------------------------


def test_samples_of_different_folders_are_different(tmp_path):
    cat, dog = picture((255, 0, 0)), picture((0, 0, 255))
    members = {"cat/0.png": cat, "cat/0.txt": b"a cat", "dog/0.png": dog, "dog/0.txt": b"a dog"}
    path = written(tmp_path / "a.tar", tar(*(member(*each) for each in members.items())))
    found = list(webdataset.Shards(webdataset.Settings(path=path, held_out=0), "train"))
    assert [(item.key, item.caption, item.encoded) for item in found] == [
        ("cat/0", "a cat", cat),
        ("dog/0", "a dog", dog),
    ]


def grouped(path):
    """The samples of a shard as the webdataset library groups them."""
    with path.open("rb") as file:
        members = [{**found, "__url__": ""} for found in tar_file_iterator(file)]
    found = [{**sample} for sample in group_by_keys(members)]
    return [(sample.pop("__key__"), sample) for sample in found if sample.pop("__url__") == ""]


NAMES = [
    "0.png", "0.txt", "1.PNG", "1.txt", "a/0.png", "a/0.json", "b/0.png", "b/0.txt", "a.b/0.jpg", "a.b/0.cls.txt", "a/b/c.webp",
    "a/b/c.seg.png", "a/b/c.txt", "2.v2.png", "2.v2.txt", "bare", "a/bare", "._0.png", ".DS_Store", "__meta__", "__meta__/x.png",
]  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(names=st.lists(st.sampled_from(NAMES), unique=True, max_size=12))
def test_samples_are_those_of_the_webdataset_library(names, tmp_path_factory):
    path = written(tmp_path_factory.mktemp("t") / "a.tar", tar(*(member(name, name.encode()) for name in names)))
    mine = [(key, dict(sample)) for key, sample in shards.samples(path)]
    wanted = (*shards.IMAGES, *shards.TEXTS)
    theirs = [
        (key, {extension: content for extension, content in sample.items() if extension in wanted})
        for key, sample in grouped(path)
        if any(extension.rpartition(".")[2] in wanted for extension in sample)
    ]
    assert mine == theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_key_is_that_of_the_webdataset_library(name):
    if not name.startswith("__"):
        theirs = base_plus_ext(name)
        assert shards.split(name) == (("", "") if theirs[0] is None else (theirs[0], theirs[1].lower()))


OTHERS = [
    "._good.png", "a/._good.txt", ".DS_Store", "a/.DS_Store", "README", "README.md", "readme.txt", "a/README.json", "LICENSE",
    "index.html", "good.cls", "__meta__", "__stats__/0.json", "video.mp4",
]  # fmt: skip


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_what_belongs_to_no_sample_is_passed_over(prefix, compress, tmp_path):
    around = [member(prefix + name, b"anything") for name in OTHERS]
    first = [member(f"{prefix}0.png", picture()), *around, member(f"{prefix}0.txt", b"zero")]
    second = [member("1.json", b'{"caption": "one"}'), member("1.png", picture())]
    content = tar(member("./", kind=b"5"), *around, *first, *around, *second)
    assert read(written(tmp_path / "a.tar", compress(content))) == (["zero", "one"], 0)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_and_foreign_names_are_keys(form, tmp_path):
    names = ["x" * 80 + "/" + "y" * 90, "кошка/ü"] + (["z" * 300] if form != tarfile.USTAR_FORMAT else [])
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as made:
        for name in names:
            for extension, content in (("png", picture()), ("txt", name.encode())):
                info = tarfile.TarInfo(f"{name}.{extension}")
                info.size = len(content)
                made.addfile(info, io.BytesIO(content))
    assert [key for key, _ in shards.samples(tmp_path / "a.tar")] == names
    assert read(tmp_path / "a.tar") == (names, 0)


def test_a_key_that_is_not_utf8_can_be_printed(tmp_path):
    long = member("x", b"\xff\xe9.png\0", b"L")
    [(key, sample)] = shards.samples(written(tmp_path / "a.tar", tar(long, member("x", b"content"))))
    assert key == r"\xff\xe9" and sample == {"png": b"content"}


# --- what a tar may claim --------------------------------------------------------------------------------------------

FAULTS = {
    "a second picture of the same name": [
        member("bad.png", picture()),
        member("bad.PNG", picture()),
        member("bad.txt", b"a"),
    ],
    "a caption of 20 MB": [member("bad.png", picture()), member("bad.txt", b" " * 20_000_000)],
    "a sparse member": [member("bad.png", b"", b"S"), member("bad.txt", b"a")],
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_sample_that_cannot_be_used_is_named_and_the_others_are_read(what, tmp_path):
    last = [member("last.png", picture()), member("last.txt", b"last")]
    path = written(tmp_path / "a.tar", tar(GOOD, *FAULTS[what], *last))
    with pytest.raises(InputError, match=r"a\.tar: sample 'bad': .*'bad\.(png|PNG|txt)'"):
        read(path)
    assert read(path, skip=True) == (["good", "last"], 1)


SIZES = {"8 GB": 8 * 2**30 - 1, "more than there is memory": 2**50, "no number": 2**80, "less than nothing": -1536}


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzipped"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", [b"0", b"S", b"L", b"x", b"g"], ids=["file", "sparse", "longname", "pax", "global"])
def test_a_size_is_a_claim(kind, size, compress, tmp_path):
    """A header takes 512 bytes, whatever it says: no memory is asked for, and reading neither goes back nor round."""
    path = written(tmp_path / "a.tar", compress(tar(GOOD, header("bad.png", size, kind), picture(), GOOD)))
    with pytest.raises(InputError, match=r"a\.tar: missing or corrupt shard: .*claims") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    captions, skipped = read(path, skip=True)
    assert skipped == 1 and captions == (["good"] if kind in (b"0", b"S") else [])


def pax(**records):
    lines = b""
    for key, value in records.items():
        body = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(body) + 2 + (len(body) + 2 > 99)
        lines += b"%d" % length + body
    return member("x", lines, b"x")


HEADERS = {
    "a chain of pax headers": [pax(comment="x")] * 1500,
    "a chain of long names": [member("x", b"x\0", b"L")] * 1500,
    "headers of 2 MB": [member("x", b"x" * 600_000 + b"\0", b"L")] * 3,
    "a map that is none": [pax(GNU_sparse_major=0, GNU_sparse_map="a,b", GNU_sparse_size=9)],
    "a size beside the size": [pax(size="99999999999999999999")],
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_lead_nowhere_are_one_line(what, tmp_path):
    path = written(tmp_path / "a.tar", tar(GOOD, *HEADERS[what], member("bad.png", picture()), member("bad.txt", b"a")))
    with pytest.raises(InputError, match=r"a\.tar: missing or corrupt shard: ") as caught:
        read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert read(path, skip=True)[1] == 1


def test_a_gzip_bomb_is_not_expanded(tmp_path, monkeypatch):
    """20 kB that ask for 3 GB, of which they hold 4 MB: as a picture, as something else, and as many empty members."""
    zeros = b"\0" * 4_000_000
    for name in ("bad.png", "bad.bin"):
        bomb = gzip.compress(GOOD + header(name, 3 * 2**30) + zeros, compresslevel=1)
        with pytest.raises(InputError, match=r"claims bytes"):
            read(written(tmp_path / "a.tar.gz", bomb))
        assert read(tmp_path / "a.tar.gz", skip=True)[1] == 1
    monkeypatch.setattr(shards, "SLACK", 2**20)
    many = gzip.compress(tar(GOOD, header("empty.bin", 0) * 10_000))
    assert len(many) < 30_000
    with pytest.raises(InputError, match="expands more than 100 times"):
        read(written(tmp_path / "a.tar.gz", many))


def test_a_shard_that_compresses_well_is_read(tmp_path):
    samples = [member(f"{i}.png", picture()) + member(f"{i}.txt", b"same") for i in range(300)]
    assert read(written(tmp_path / "a.tar.gz", gzip.compress(tar(*samples)))) == (["same"] * 300, 0)


@pytest.mark.parametrize("name", ["bz2", "lzma"])
def test_other_compressions_are_named(name, tmp_path):
    module = pytest.importorskip(name)
    with pytest.raises(InputError, match=r"compressed with (bzip2|xz); expected a tar, plain or gzipped"):
        read(written(tmp_path / "a.tar", module.compress(tar(GOOD))))


def test_what_is_passed_over_is_not_read(tmp_path, monkeypatch):
    film, last = member("good.mp4", b"x" * 3_000_000), [member("1.png", picture()), member("1.txt", b"1")]
    path = written(tmp_path / "a.tar", tar(GOOD, film, *last))
    taken = []
    fetch = shards._Headers.read
    monkeypatch.setattr(shards._Headers, "read", lambda self, size: taken.append(size) or fetch(self, size))
    assert read(path) == (["good", "1"], 0) and sum(taken) < 10_000


def test_a_skipped_sample_is_logged_on_one_line(tmp_path, caplog):
    path = written(tmp_path / "a.tar", tar(GOOD, member("x\n\x1b[2J.png", picture())))
    with caplog.at_level(logging.WARNING):
        assert read(path, skip=True) == (["good"], 1)
    assert all(record.getMessage().isprintable() for record in caplog.records) and len(caplog.records) == 2
