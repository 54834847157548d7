"""The base of what people write as mappings: studies, recipes, search spaces, and the settings of whatever a menu offers."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Unknown keys are errors, values are frozen, and the string below a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
