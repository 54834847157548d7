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

import griffe
import yaml
from mkdocs.structure.files import File, Files
from pydantic import TypeAdapter

import nas
from nas import menu
from nas.settings.entries import Entry
from nas.settings.study import Study

ROOT = Path(__file__).parents[2]
MENUS = {
    "datasets": "dataset",
    "autoencoders": "autoencoder",
    "objectives": "objective",
    "metrics": "metrics",
    "priors": "prior",
}  # folder -> the key of the study file that takes a name from it
ASKED = re.compile(r"<!-- generated: ([a-z ]+) -->")
PICTURE = re.compile(r"\]\(((?:\.\./)+)(studies/[^)]+\.png)\)")
FROM_FOLDER = "name"  # the key that nas.settings.study.load fills in
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
    paths = dict(_sections(schema, schema["$defs"], "", set()))
    parts = ["## Top level", "", *_keys(schema, schema["$defs"], paths)]
    for name, path in paths.items():
        section = schema["$defs"][name]
        parts += ["", f"## `{path}` {{: #{_anchor(path)} }}", "", section.get("description", ""), ""]
        parts += _keys(section, schema["$defs"], paths)
    return "\n".join(parts)


def menus() -> str:
    """The settings of every file of the menu folders that a study file names."""
    parts: list[str] = []
    for folder, key in MENUS.items():
        for name in menu.names(folder):
            module = menu.pick(folder, name)
            parts += [
                "",
                f"### `{key}: {name}`",
                "",
                _summary(module.__doc__),
                "",
                *_settings(module, f"{key} {name} "),
            ]
    return "\n".join(parts)


def _settings(module: ModuleType, prefix: str) -> Iterator[str]:
    """The keys of a menu file's `Settings`, and of the sections in it that are none of the study file's own."""
    schema = module.Settings.model_json_schema()
    named = schema.get("$defs", {})
    study = Study.model_json_schema()
    known = dict(_sections(study, study["$defs"], "", set()))
    own = {name: path for name, path in _sections(schema, named, "", set()) if name not in known}
    anchors = known | {name: f"{prefix}{path}" for name, path in own.items()}
    yield from _keys(schema, named, anchors) if schema["properties"] else ["No settings.", ""]
    for name, path in own.items():
        yield from ["", f"#### `{path}` {{: #{_anchor(anchors[name])} }}", "", named[name].get("description", ""), ""]
        yield from _keys(named[name], named, anchors)


def architectures() -> str:
    """The fields of every backbone and decoder. These are dataclasses, whose docstrings of fields only the source has."""
    parts: list[str] = []
    for folder in ("backbones", "decoders"):
        for name in menu.names(folder):
            parts += ["", f"### `{folder.removesuffix('s')}: {name}`", *_fields(menu.pick(folder, name), f"{name} ")]
    return "\n".join(parts)


def _fields(module: ModuleType, prefix: str) -> Iterator[str]:
    """The fields of a file's `Config`, and of the dataclasses in it."""
    schema = TypeAdapter(module.Config).json_schema()
    named = schema.get("$defs", {})
    source = griffe.load(module.__name__, search_paths=[str(ROOT)])
    paths = dict(_sections(schema, named, "", set()))
    anchors = {name: f"{prefix}{path}" for name, path in paths.items()}
    for kind, fields in {"Config": schema, **{name: named[name] for name in paths}}.items():
        for key, value in fields["properties"].items():
            value["description"] = source[f"{kind}.{key}"].docstring.value
        heading = [f"#### `{paths[kind]}` {{: #{_anchor(anchors[kind])} }}"] if kind in paths else []
        yield from ["", *heading, "", _summary(source[kind].docstring.value), "", *_keys(fields, {}, anchors)]


def formats() -> str:
    """What `nas export --format` takes, beside yaml and safetensors."""
    rows = ["| format | runtime | precision | needs |", "|---|---|---|---|"]
    for name in menu.names("exporters"):
        module = menu.pick("exporters", name)
        rows.append(f"| `{name}` | {module.RUNTIME} | {', '.join(module.PRECISIONS)} | `nas[{module.EXTRA}]` |")
    return "\n".join(rows)


def _sections(model: Schema, named: Schema, prefix: str, seen: set[str]) -> Iterator[tuple[str, str]]:
    """(name in the schema, path in the file) of every section below a model, each once, in the order of the keys."""
    held = [
        (name, f"{prefix}{key}{suffix}")
        for key, value in model["properties"].items()
        for name, suffix in _references(value)
    ]
    for name, path in held:
        if name != Entry.__name__ and name not in seen:
            seen.add(name)
            yield name, path
            yield from _sections(named[name], named, f"{path}.", seen)


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


def _keys(schema: Schema, named: Schema, paths: dict[str, str]) -> Iterator[str]:
    """A definition list: the key with its type and default, and what it means."""
    for key, value in schema["properties"].items():
        needed = ", **required**" if key in schema.get("required", ()) and key != FROM_FOLDER else _default(value)
        yield f"`{key}` <small>{_kind(value, paths)}{needed}</small>"
        yield f":   {_meaning(value, named)}"
        yield ""


def _meaning(value: Schema, named: Schema) -> str:
    """The attribute's docstring, or the first paragraph of that of the section it holds; null as YAML spells it."""
    told = value.get("description")
    if told is None:
        told = next((named[name].get("description", "") for name, _ in _references(value)), "")
        told = told.split("\n\n")[0]
    return re.sub(r"\bNone\b", "null", " ".join(told.split())).replace("<", "&lt;")


def _default(value: Schema) -> str:
    """As a study file spells it; nothing for null, for what is empty, and for a section, whose keys have their own."""
    default = _named_only(value.get("default"))
    if default in (None, "", [], {}) or ("$ref" in value and isinstance(default, dict)):
        return ""
    spelled = yaml.safe_dump(default, default_flow_style=True, width=1000, sort_keys=False).removesuffix("...\n")
    return f", default `{spelled.strip()}`"


def _named_only(value: Any) -> Any:
    """A menu choice without settings is its name."""
    if isinstance(value, list):
        return [_named_only(each) for each in value]
    return value["name"] if isinstance(value, dict) and set(value) == {"name"} else value


def _kind(value: Schema, paths: dict[str, str]) -> str:
    """The type in words, with its bounds."""
    if "$ref" in value:
        return _linked(value["$ref"].rpartition("/")[2], paths)
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return " or ".join(f"`{word}`" for word in value["enum"])
    if "anyOf" in value:
        return " or ".join(_kind(each, paths) for each in value["anyOf"])
    kind = value.get("type")
    if kind == "array":
        return _listed(value, paths)
    if kind == "object":
        inner = value.get("additionalProperties")
        return f"mapping of names to {_kind(inner, paths)}" if isinstance(inner, dict) and inner else "mapping"
    words = {"integer": "integer", "number": "number", "boolean": "true or false", "null": "null", "string": "text"}
    word = "path" if value.get("format") == "path" else words.get(str(kind), "any value")
    return word + "".join(f" {sign} {value[name]:g}" for name, sign in BOUNDS.items() if name in value)


BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def _listed(value: Schema, paths: dict[str, str]) -> str:
    if "prefixItems" in value:
        return f"list of {len(value['prefixItems'])}: " + ", ".join(_kind(each, paths) for each in value["prefixItems"])
    return f"list of {_kind(value['items'], paths)}" if value.get("items") else "list"


def _linked(name: str, paths: dict[str, str]) -> str:
    return "a name, or a mapping with `name`" if name == Entry.__name__ else f"[section](#{_anchor(paths[name])})"


def _anchor(path: str) -> str:
    return re.sub(r"\W+", "-", path).strip("-").lower()


def _summary(docstring: str | None) -> str:
    """The first paragraph."""
    return " ".join((docstring or "").split("\n\n")[0].split())


# --- columns ----------------------------------------------------------------------------------------------------------


def columns() -> str:
    """The indented table in the docstring of `nas.load`, as a definition list."""
    rows = re.findall(r"^ {8}(\S.*?) {2,}(.+)$", nas.load.__doc__ or "", re.M)
    spelled = [
        (", ".join(f"`{name}`" for name in names.split(", ")), told.replace("<", "&lt;")) for names, told in rows
    ]
    return "\n".join(f"{names}\n:   {told}\n" for names, told in spelled)


# --- the command line -------------------------------------------------------------------------------------------------


def command_line() -> str:
    """What `typer ... utils docs` writes, without its first heading."""
    command = [sys.executable, "-m", "typer", "nas.cli", "utils", "docs", "--name", "nas"]
    written = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    _, _, verbs = written.partition("\n## ")
    return re.sub(r"^Example: (nas .+)$", r"Example:\n\n    \1", f"## {verbs}", flags=re.M)


GENERATED = {
    "study file": study_file,
    "menus": menus,
    "architectures": architectures,
    "formats": formats,
    "columns": columns,
    "command line": command_line,
}
