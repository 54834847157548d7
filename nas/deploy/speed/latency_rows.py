"""What was timed, as rows: of one device alone, in a CSV file, and as a table for people."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nas.errors import InputError

NUMBERS = {"float": float, "int": int, "str": str}


@dataclass(frozen=True)
class Row:
    """One network on one runtime. Times are for one picture."""

    network: str
    weights: str
    """`random` or `trained`."""
    runtime: str
    runtime_version: str
    threads: int
    image_size: int
    decoder: str
    text_encoder_ms: float
    text_encoder_low_ms: float
    text_encoder_high_ms: float
    text_encoder_cpu_ms: float
    denoiser_ms: float
    denoiser_low_ms: float
    denoiser_high_ms: float
    denoiser_cpu_ms: float
    decoder_ms: float
    decoder_low_ms: float
    decoder_high_ms: float
    decoder_cpu_ms: float
    steps: int
    """Calls of the denoiser, guidance branches counted."""
    overall_ms: float
    """Text encoder, `steps` calls of the denoiser, decoder: the sum of their medians."""
    overall_cpu_ms: float
    repeats: int
    load: float
    """Programs that wanted a core when the row was done (the machine's one minute load average)."""
    device: str
    fingerprint: str
    """Eight hex digits that equal devices share."""


def same_device(rows: Iterable[Row], where: str = "") -> None:
    """Raises InputError when rows come from several devices, naming two."""
    seen = {row.fingerprint: row.device for row in rows}
    if len(seen) > 1:
        one, two = list(seen.items())[:2]
        raise InputError(
            f"{where}{': ' if where else ''}rows of different devices do not compare: {one[0]} is {one[1]}, {two[0]} is {two[1]}"
        )


def read_csv(path: Path) -> list[Row]:
    """The rows of a table that `write_csv` wrote. Raises InputError when it is something else."""
    kinds = {field.name: NUMBERS[str(field.type)] for field in fields(Row)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [Row(**{name: kind(line[name]) for name, kind in kinds.items()}) for line in csv.DictReader(file)]
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: not a table of latencies ({error!r}); expected what nas latency --csv wrote"
        ) from None


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Add rows to a table, in place of earlier ones of the same network, runtime, threads, image size and decoder.

    Raises InputError, and leaves the table alone, when it was measured on another device.
    """
    kept = read_csv(path) if path.is_file() else []
    same_device([*kept, *rows], str(path))

    def identity(row: Row) -> tuple[Any, ...]:
        return row.network, row.runtime, row.threads, row.image_size, row.decoder

    new = {identity(row) for row in rows}
    table = [row for row in kept if identity(row) not in new] + list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def grid(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people; times in ms, medians with quartiles. Raises InputError for several devices."""
    same_device(rows)
    heads = ["network", "runtime", "threads", "px", "text encoder", "decoder", "denoiser step", "steps", "overall, ms"]
    heads += ["in CPU time, ms"]
    cells = []
    for row in rows:
        parts = [
            f"{getattr(row, f'{part}_ms'):.3g} [{getattr(row, f'{part}_low_ms'):.3g}, {getattr(row, f'{part}_high_ms'):.3g}]"
            for part in ("text_encoder", "decoder", "denoiser")
        ]
        cells.append(
            [row.network, row.runtime, str(row.threads), str(row.image_size), *parts, str(row.steps)]
            + [f"{row.overall_ms:.4g}", f"{row.overall_cpu_ms:.4g}"]
        )
    return heads, cells
