"""W&B's offline runs read back from the files it writes, without W&B's own reader."""

import json
import time
from pathlib import Path


def chunks(data):
    """The messages of a .wandb file: LevelDB log format (32 KiB blocks; crc 4, length 2, kind 1) after 7 bytes."""
    place, message = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield message
            message = b""


def read_back(path):
    """One W&B run: its identity, config, history rows and summary, as far as they are written whole."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    def value(items):
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    run = {"config": {}, "history": [], "summary": {}}
    for message in chunks(path.read_bytes()):
        try:
            record = Record.FromString(message)
        except DecodeError:  # W&B's process is writing it
            break
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"name": record.run.display_name, "group": record.run.run_group, "job": record.run.job_type}
            run |= {"tags": list(record.run.tags), "project": record.run.project}
            run["config"] |= value(record.run.config.update)
        elif kind == "history":
            run["history"].append(value(record.history.item))
        elif kind == "summary":
            run["summary"] |= value(record.summary.update)
        elif kind == "exit":
            run["exit"] = record.exit.exit_code
    return run


def runs_of(run_dir):
    """Every run by name, once W&B's writer has put the last message of each on disk (a moment after `finish`)."""
    paths = list((run_dir / "wandb").glob("offline-run-*/*.wandb"))
    deadline = time.monotonic() + 20
    while True:
        found = [read_back(path) for path in paths]
        if all("exit" in run for run in found) or time.monotonic() > deadline:
            return {run["name"]: run for run in found}
        time.sleep(0.05)


def tables_of(run_dir):
    """Every table that was logged by its key, as (columns, rows)."""
    found = {}
    for path in (run_dir / "wandb").glob("offline-run-*/files/media/table/*.table.json"):
        table = json.loads(path.read_text())
        found[path.name.rsplit("_", 2)[0]] = table["columns"], table["data"]
    return found


def pictures_of(run_dir, key):
    """The files in a table's artifact, as they wait to be uploaded: path in the table -> bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in (run_dir / "wandb").glob("offline-run-*/*.wandb"):
        for record in map(Record.FromString, chunks(path.read_bytes())):
            if record.WhichOneof("record_type") == "artifact" and record.artifact.name.endswith(f"-{key}"):
                contents = record.artifact.manifest.contents
                found |= {
                    one.path: Path(one.local_path).read_bytes() for one in contents if one.path.startswith("media/")
                }
    return found
