"""Any metric of the menu on any pictures: a folder's, or what an export draws (`nas score`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import menu
from nas.datasets import BATCH, Batch, Captioned, Pictures, folder
from nas.deploy import drawer
from nas.deploy.contents import export_folder
from nas.disk.decoding import UnreadablePicture, shorter_side
from nas.disk.reading import PICTURE, TEXT, contents
from nas.documents import yaml_text
from nas.documents.document import Document
from nas.documents.yaml_text import NotRead
from nas.errors import InputError, about, bounded
from nas.metrics import Reference, scores
from nas.settings.entries import Entry, dataset_of
from nas.training import encoded
from nas.weights import worlds

if TYPE_CHECKING:
    from torchmetrics import Metric

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
IMAGES = 256  # that an export draws, unless it is said
Said = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """What `nas score` is asked."""

    metrics: str
    captions: Path | None = None
    reference: str | None = None
    images: int | None = None
    size: int | None = None
    seed: int = 0
    cache: Path = Path("runs/.cache")


@dataclass(frozen=True)
class Row:
    """One score."""

    pictures: str
    column: str
    value: float
    unit: str
    higher_is_better: bool
    conditions: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """As one flat JSON object."""
        head = {name: getattr(self, name) for name in ("pictures", "column", "value", "unit", "higher_is_better")}
        return {**head, **self.conditions}


class Folder:
    """The pictures of a folder and the folders in it, in the order of their names, with the captions of `captions`, of its
    metadata.jsonl, or none."""

    def __init__(self, path: Path, captions: Path | None = None, size: int | None = None, most: int | None = None):
        """Raises InputError for a folder without pictures, and for captions that are not as many."""
        self.path, self.most = path, most
        if captions is None and (path / "metadata.jsonl").is_file():
            self._items: Iterable[Captioned] = folder.Folder(folder.Settings(path=path, held_out=0), "train")
            self.captioned = True
        else:
            names = _pictures(path)
            said = _lines(captions) if captions is not None else [""] * len(names)
            if len(said) != len(names):
                raise InputError(
                    f"--captions {captions}: {len(said):,} captions for the {len(names):,} pictures of {path}; expected one a "
                    "picture, in the order of their names"
                )
            self._items = _Read(list(zip(names, said, strict=True)))
            self.captions = said[:most]  # known without reading a picture
            self.captioned = captions is not None
        self.size = size or self._first_side()

    @cached_property
    def captions(self) -> list[str]:
        return [item.caption for item in islice(self._items, self.most)]

    def __len__(self) -> int:
        return len(self.captions)

    def __iter__(self) -> Iterator[Batch]:
        yield from Pictures(_First(self._items, self.most), self.size)

    def _first_side(self) -> int:
        first = next(iter(self._items), None)
        if first is None:
            raise InputError(f"{self.path}: metadata.jsonl names no picture")
        try:
            return shorter_side(first.encoded)
        except UnreadablePicture as error:
            raise InputError(f"{first.source}: not a readable picture: {error}") from None


@dataclass(frozen=True)
class _First:
    items: Iterable[Captioned]
    most: int | None

    def __iter__(self) -> Iterator[Captioned]:
        return islice(iter(self.items), self.most)


@dataclass(frozen=True)
class _Read:
    """Pictures by path with their captions, read when they are asked for."""

    named: Sequence[tuple[Path, str]]

    def __iter__(self) -> Iterator[Captioned]:
        for path, caption in self.named:
            try:
                yield Captioned(path.name, caption, contents(path, PICTURE), str(path))
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from None


class Drawn:
    """What an export draws for captions, with its own plan."""

    captioned = True

    def __init__(self, path: Path, captions: Sequence[str], seed: int, say: Said):
        self.path, self.captions, self.seed, self.say = path, list(captions), seed, say
        drawer.check_captions(captions)
        self.drawer = drawer.load(path)
        self.size = int(export_folder.pipeline(path)["image_size"])

    def __len__(self) -> int:
        return len(self.captions)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self), BATCH):
            said = self.captions[first : first + BATCH]
            pictures = self.drawer.draw(said, self.seed, first=first)
            self.say(f"{self.path}: drew {first + len(said):,} of {len(self):,}")
            yield Batch(pictures, said, [str(first + at) for at in range(len(said))])


def score(what: Sequence[Path], asked: Asked, say: Said) -> list[Row]:
    """Every metric that is asked for on each of the folders and exports.

    Raises InputError for what has no pictures or too few, a metric that does not exist or whose weights are not there, and
    captions or real pictures that a metric needs and nobody named.
    """
    entries = _entries(asked.metrics)
    named = _real_pictures(what, asked)
    sources = [_source(path, asked, named, say) for path in what]
    for entry in entries:
        _check(entry, sources)
    captions = list(dict.fromkeys(said for source in sources for said in source.captions))
    asks = any(_module(entry, "CAPTIONED") for entry in entries)
    real = _reference(asked, named, captions, asks)
    built = [_built(entry, real) for entry in entries]
    for source in sources:
        for metric in built:
            _enough(metric, source)
    return [row for source in sources for row in _rows(source, built, named)]


def _entries(text: str) -> list[Entry]:
    """`fid,kid` or `fid,{name: fid, features: inception}`. Raises InputError for an unknown name or setting."""
    try:
        given = yaml_text.read(f"[{text}]").value
    except NotRead as error:
        raise InputError(bounded(f"--metrics {text}: {error.problem}")) from None
    if not given:
        raise InputError(f"--metrics: expected some of: {', '.join(menu.names('metrics'))}")
    document = Document("--metrics", {"metrics": given}, {"": "--metrics: "})
    entries: list[Entry] = [document.validate(Entry, each) for each in _mappings(given)]
    columns: set[str] = set()
    for entry in entries:
        module = menu.pick("metrics", entry.name)
        document.validate(module.Settings, entry.options)
        own = set(module.columns(entry.settings("metrics")))
        if twice := columns & own:
            raise InputError(f"--metrics: two of them give the column {min(twice)!r}")
        columns |= own
    return entries


def _module(entry: Entry, attribute: str) -> Any:
    """What the metric's file provides under that name, if it does."""
    return getattr(menu.pick("metrics", entry.name), attribute, None)


def _mappings(given: Sequence[Any]) -> list[dict[str, Any]]:
    return [each if isinstance(each, dict) else {"name": str(each)} for each in given]


def _check(entry: Entry, sources: Sequence[Folder | Drawn]) -> None:
    for source in sources:
        if _module(entry, "CAPTIONED") and not source.captioned:
            raise InputError(
                f"--captions: {entry.name} compares pictures with captions, and {source.path} has no metadata.jsonl; expected "
                "a file with a caption a line, in the order of the pictures' names"
            )
        if check := _module(entry, "check"):
            with about(f"--metrics {entry.name}"):
                check(entry.settings("metrics"), source.captions[:BATCH])
    _tell_judge(entry)


def _tell_judge(entry: Entry) -> None:
    """Say on stderr which pictures the judge knows that ships, where it is not asked by its name."""
    weights = _module(entry, "weights")
    path = weights(entry.settings("metrics")) if weights is not None else None
    knows = worlds.made_for(path) if path is not None else None
    if knows is not None and "judge" not in entry.options:
        print(
            f"nas: note: the judge of {entry.name} that ships knows pictures of {knows} only; for others name one, as in "
            f"{{name: {entry.name}, judge: FOLDER}}",
            file=sys.stderr,
        )


def _built(entry: Entry, reference: Reference) -> Metric:
    with about(f"--metrics {entry.name}"):
        metric: Metric = menu.pick("metrics", entry.name).build(entry.settings("metrics"), reference)
    return metric


def _enough(metric: Metric, source: Folder | Drawn) -> None:
    try:
        if hasattr(metric, "enough"):
            metric.enough(len(source))  # type: ignore[operator]
    except ValueError as error:
        raise InputError(f"{source.path}: too few pictures: {error}") from None


def _rows(source: Folder | Drawn, built: Sequence[Metric], named: Entry | Path | None) -> Iterator[Row]:
    found = scores(built, ((batch.images, batch.captions) for batch in source))
    real = {} if named is None else {"reference": named.name if isinstance(named, Entry) else str(named)}
    drawn = {"seed": source.seed, **source.drawer.plan.model_dump(mode="json")} if isinstance(source, Drawn) else {}
    for metric in built:
        own: dict[str, Any] = dict(metric.conditions)  # type: ignore[arg-type]
        conditions = {**own, **(real if "references" in own else {}), "images": len(source), "image_size": source.size}
        for column in metric.columns:  # type: ignore[union-attr]
            better = bool(metric.higher_is_better)
            yield Row(str(source.path), column, found[column], str(metric.unit), better, {**conditions, **drawn})


# --- pictures --------------------------------------------------------------------------------------------------------


def _source(path: Path, asked: Asked, named: Entry | Path | None, say: Said) -> Folder | Drawn:
    if not (path / export_folder.MANIFEST).is_file():
        return Folder(path, asked.captions, asked.size, asked.images)
    said = _lines(asked.captions) if asked.captions is not None else _held_out(path, named, asked.images or IMAGES)
    return Drawn(path, list(islice(cycle(said), asked.images or len(said))), asked.seed, say)


def _pictures(path: Path) -> list[Path]:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; expected pictures, or what nas export wrote")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and not p.name.startswith("."))
    if not found:
        raise InputError(f"{path}: no picture in it; expected files that end in {', '.join(ENDINGS)}, or an export")
    return found


def _lines(captions: Path) -> list[str]:
    """A caption a line, or an object with `text` where the file's name ends in .jsonl."""
    try:
        lines = [line for line in contents(captions, TEXT).decode("utf-8-sig").split("\n") if line.strip()]
        said = [str(json.loads(line)["text"]) if captions.suffix == ".jsonl" else line.strip() for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        told = error.strerror if isinstance(error, OSError) else "expected UTF-8, a caption a line"
        raise InputError(f"--captions {captions}: {told}") from None
    if not said:
        raise InputError(f"--captions {captions}: no caption in it; expected one a line")
    return said


def _held_out(path: Path, named: Entry | Path | None, count: int) -> list[str]:
    """Captions of the data set's held-out pictures."""
    if not isinstance(named, Entry):
        raise InputError(f"--captions: {path} draws captions, and no data set has any; expected a file with one a line")
    batches = menu.pick("datasets", named.name).load(named.settings("datasets"), "held_out")
    return list(islice((said for batch in batches for said in batch.captions), count))


# --- real pictures ---------------------------------------------------------------------------------------------------


def _real_pictures(what: Sequence[Path], asked: Asked) -> Entry | Path | None:
    """The data set or the folder to compare with; unless it is named, the data set of the first export among `what`."""
    if asked.reference is not None:
        path = Path(asked.reference).expanduser()
        plain = path.is_dir() and not any(path.glob("*.tar*")) and asked.reference not in menu.names("datasets")
        return path if plain else _dataset(dataset_of(asked.reference, "--reference"))
    studies = [path / "study.yaml" for path in what if (path / "study.yaml").is_file()]
    return _dataset(Document.read(studies[0]).content["dataset"]) if studies else None


def _dataset(content: Any) -> Entry:
    document = Document("--reference", {"dataset": content}, {"": "--reference: "})
    entry: Entry = document.validate(Entry, content)
    document.validate(menu.pick("datasets", entry.name).Settings, entry.options)
    return entry


def _reference(asked: Asked, named: Entry | Path | None, captions: list[str], asks: bool) -> Reference:
    """`asks`: whether the real pictures' captions are read. Without real pictures, a metric says that it needs
    some as it asks for them."""
    if isinstance(named, Entry):
        settings = named.settings("datasets")
        real = menu.pick("datasets", named.name).load(settings, "train")
        dataset = {"name": named.name, **settings.model_dump(mode="json")}
        cache = encoded.cache_path(asked.cache, reading=encoded.READING, dataset=dataset)
        return Reference(lambda: real, _captions(real) if asks else [], cache, captions)
    if named is not None:
        return Reference(lambda: iter(Folder(named, size=asked.size)), captions, None, captions)
    return Reference(_missing, captions, None, captions)


def _missing() -> Iterable[Batch]:
    raise InputError(
        f"--reference: needed to compare with real pictures; expected a folder of them, a data set's path, or one of: "
        f"{', '.join(menu.names('datasets'))}"
    )


def _captions(real: Any) -> list[str]:
    items = getattr(real, "items", None)
    if items is not None:
        return [item.caption for item in items]
    return [said for batch in real for said in batch.captions]


# --- printing --------------------------------------------------------------------------------------------------------


def lines(rows: Sequence[Row]) -> list[str]:
    """One JSON object a score."""
    return [json.dumps(row.plain()) for row in rows]


def grid(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people."""
    cells = [
        [
            row.pictures,
            row.column,
            f"{row.value:.5g}",
            "higher" if row.higher_is_better else "lower",
            row.unit,
            f"{row.conditions['images']}",
            f"{row.conditions.get('references', '-')}",
        ]
        for row in rows
    ]
    return ["pictures", "score", "value", "better", "unit", "images", "real"], cells
