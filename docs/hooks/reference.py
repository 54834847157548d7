"""mkdocs hooks: the keys of the study file and the verbs of the command line, written from the code that reads them.

A page asks with a comment, `<!-- generated: study file -->`. Types, bounds and defaults come from pydantic's JSON schema,
explanations from the attribute docstrings in it.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from nas import menu
from nas.settings import Entry, Study

ROOT = Path(__file__).parents[2]
MENUS = {
    "datasets": "dataset",
    "autoencoders": "autoencoder",
    "objectives": "objective",
    "metrics": "metrics",
}  # folder -> the key of the study file that takes a name from it
ASKED = re.compile(r"<!-- generated: ([a-z ]+) -->")
PICTURE = re.compile(r"\]\(((?:\.\./)+)(studies/[^)]+\.png)\)")
Schema = dict[str, Any]


# --- hooks ------------------------------------------------------------------------------------------------------------


def on_files(files: Files, config: Any) -> Files:
    """Pictures of the studies are served from where they lie in the repository."""
    for path in sorted((ROOT / "studies").glob("*/*.png")):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill in what a page asks for, and point pictures at their place in the site."""
    folder = posixpath.dirname(page.file.src_uri)
    markdown = PICTURE.sub(lambda found: f"]({posixpath.relpath(found[2], folder or '.')})", markdown)
    return ASKED.sub(lambda found: GENERATED[found[1]](), markdown)


# --- the study file ---------------------------------------------------------------------------------------------------


def study_file() -> str:
    """Every section of a study file, each key with its type, bounds, default and meaning."""
    schema = Study.model_json_schema()
    parts = ["## Top level", "", *_keys(schema, schema["$defs"])]
    for name, path in sorted(_sections(schema).items(), key=lambda found: found[1]):
        section = schema["$defs"][name]
        parts += ["", f"## `{path}` {{: #{_anchor(name)} }}", "", *_text(section), "", *_keys(section, schema["$defs"])]
    return "\n".join(parts)


def menus() -> str:
    """The settings of every file of the menu folders that a study file names."""
    parts: list[str] = []
    for folder, key in MENUS.items():
        for name in menu.names(folder):
            module = menu.pick(folder, name)
            schema = module.Settings.model_json_schema()
            keys = _keys(schema, schema.get("$defs", {})) if schema["properties"] else ["No settings.", ""]
            parts += ["", f"### `{key}: {name}`", "", _summary(module), "", *keys]
    return "\n".join(parts)


def formats() -> str:
    """What `nas export --format` takes, beside yaml and safetensors."""
    rows = ["| format | runtime | precision | needs |", "|---|---|---|---|"]
    for name in menu.names("exporters"):
        module = menu.pick("exporters", name)
        rows.append(f"| `{name}` | {module.RUNTIME} | {', '.join(module.PRECISIONS)} | `nas[{module.EXTRA}]` |")
    return "\n".join(rows)


def _sections(schema: Schema) -> dict[str, str]:
    """Name in the schema -> path in the file, of every section below the top level."""
    found: dict[str, str] = {}
    open_ = [("", schema)]
    while open_:
        prefix, model = open_.pop(0)
        for key, value in model["properties"].items():
            for name, suffix in _references(value):
                if name != Entry.__name__ and name not in found:
                    found[name] = f"{prefix}{key}{suffix}"
                    open_.append((f"{found[name]}.", schema["$defs"][name]))
    return found


def _references(value: Schema, suffix: str = "") -> Iterator[tuple[str, str]]:
    """(name, what stands between the key and it) of the models that a property's value may be."""
    if "$ref" in value:
        yield value["$ref"].rpartition("/")[2], suffix
    for each in value.get("anyOf", ()):
        yield from _references(each, suffix)
    if "items" in value:
        yield from _references(value["items"], f"{suffix}[]")
    if isinstance(value.get("additionalProperties"), dict):
        yield from _references(value["additionalProperties"], f"{suffix}.NAME")


def _keys(schema: Schema, named: Schema) -> Iterator[str]:
    """A definition list: the key with its type and default, and what it means."""
    for key, value in schema["properties"].items():
        needed = key in schema.get("required", ())
        yield f"`{key}` <small>{_kind(value)}{_default(value, needed)}</small>"
        yield f":   {_meaning(value, named)}"
        yield ""


def _meaning(value: Schema, named: Schema) -> str:
    """The attribute's docstring, or the first sentence of that of the section it holds."""
    told = value.get("description")
    if told is None:
        told = next((named[name].get("description", "") for name, _ in _references(value)), "")
        told = told.split("\n\n")[0]
    return " ".join(told.split())


def _default(value: Schema, needed: bool) -> str:
    if needed:
        return ", **required**"
    default = value.get("default")
    if default is None or isinstance(default, dict) and "$ref" in value:
        return ""
    spelled = yaml.safe_dump(default, default_flow_style=True, width=1000, sort_keys=False).removesuffix("...\n")
    return f", default `{spelled.strip()}`" if default not in ("", [], {}) else ""


def _kind(value: Schema) -> str:
    """The type in words, with its bounds."""
    if "$ref" in value:
        return _linked(value["$ref"].rpartition("/")[2])
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{word}`" for word in value["enum"])
    if "anyOf" in value:
        return " or ".join(_kind(each) for each in value["anyOf"])
    kind = value.get("type")
    if kind == "array":
        return _listed(value)
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping of names to {_kind(inner)}" if isinstance(inner, dict) and inner else "mapping"
    words = {"integer": "integer", "number": "number", "boolean": "true or false", "null": "null", "string": "text"}
    word = "path" if value.get("format") == "path" else words.get(str(kind), "any value")
    return word + "".join(f" {sign} {value[name]:g}" for name, sign in BOUNDS.items() if name in value)


BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def _listed(value: Schema) -> str:
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: " + ", ".join(_kind(each) for each in value["prefixItems"])
    return f"list of {_kind(value['items'])}" if value.get("items") else "list"


def _linked(name: str) -> str:
    return "a name, or a mapping with `name`" if name == Entry.__name__ else f"[section](#{_anchor(name)})"


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-").lower()


def _text(schema: Schema) -> list[str]:
    return [schema.get("description", "")]


def _summary(module: ModuleType) -> str:
    """The first paragraph of a file's docstring."""
    return " ".join((module.__doc__ or "").split("\n\n")[0].split())


def sections() -> list[type[BaseModel]]:
    """Every settings class that the page documents, for the test that none of their keys goes unexplained."""
    return [Study, *(menu.pick(folder, name).Settings for folder in MENUS for name in menu.names(folder))]


# --- the command line -------------------------------------------------------------------------------------------------


def command_line() -> str:
    """What `typer ... utils docs` writes, without its first heading."""
    command = [sys.executable, "-m", "typer", "nas.cli", "utils", "docs", "--name", "nas"]
    written = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    _, _, verbs = written.partition("\n## ")
    return f"## {verbs}"


GENERATED = {"study file": study_file, "menus": menus, "formats": formats, "command line": command_line}
