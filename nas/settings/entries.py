"""What every section of a study file is, and a choice from a menu."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from nas import menu
from nas.documents.strict import validated


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
