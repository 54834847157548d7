"""What every section of a study file is, and a choice from a menu."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from nas import menu
from nas.documents import yaml_text
from nas.documents.strict import validated
from nas.documents.yaml_text import NotRead
from nas.errors import InputError, bounded


class Entry(BaseModel):
    """A choice from a menu folder: its name, and the settings its file defines."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    def settings(self, folder: str) -> Any:
        """The file's own `Settings`, validated."""
        return validated(menu.pick(folder, self.name).Settings, self.options)


def dataset_of(data: str, option: str = "--data") -> dict[str, Any]:
    """What an option that names pictures means: a YAML mapping, a name of the menu, or a path whose kind shows.

    A folder with metadata.jsonl is `folder`; tars, a folder of them or a pattern is `webdataset`.
    """
    tars = re.search(r"\.tar(\.gz)?$", data) is not None
    if not tars and data.lstrip().startswith("{"):  # not the pattern {000..099}.tar
        try:
            return dict(yaml_text.read(data).value)
        except (NotRead, TypeError, ValueError):
            raise InputError(
                bounded(f"{option} {data}: not valid YAML; expected for example {{name: folder, path: DIR}}")
            ) from None
    if data in menu.names("datasets"):
        return {"name": data}
    path = Path(os.path.expanduser(data))
    if (path / "metadata.jsonl").is_file():
        return {"name": "folder", "path": data}
    if tars or (path.is_dir() and any(path.glob("*.tar*"))):
        return {"name": "webdataset", "path": data}
    raise InputError(
        f"{option} {bounded(data)}: no data set; expected shards (.tar, a folder of them or a pattern), a folder with "
        f"metadata.jsonl, or one of: {', '.join(menu.names('datasets'))}"
    )
