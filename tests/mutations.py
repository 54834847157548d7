"""Files as people get them wrong: good ones, each with one thing changed, from a seed."""

import copy
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

STUDIES = Path(__file__).parents[1] / "studies"
HOLE = "HOLE"
VALUES = """
yes|no|on|true|null|~|''|""|-1|0|1|3|7|010|1:30|0x1F|1e3|4K|400M|1e400|-.inf|.inf|.nan|nan|inf|1e-400|1_0|65|1000|1000000|10000000000000
99999999999999999999|1.5|-0.0|2025-13-45|2025-01-01|zebra|None|scratch|base|supernet|nowhere.yaml|../up|/etc/passwd|a b|a: b|é|💥
[]|{}|[1, 2]|[zebra]|[[]]|{zebra: 1}|{name: zebra}|[{name: fid}, {name: fid}]|{name: fid, weights: no.pth}|[null]
[true]|{a: {b: c}}
!!int zebra|!!timestamp 2025-13-45|!!python/object/apply:os.system [ls]|!!binary eA==|&a [*a]|*nowhere|"\\0"|'|"|[|{|- 1|%|@|>
# nothing
"""
TYPOS = ("", "s", "_", "x y", "3", "<<")


def long_values(rng: random.Random) -> str:
    """What is too much of something."""
    return rng.choice(
        (
            "z" * 20_000,
            "[" * 3_000,
            "[" * 50 + "]" * 50,
            "{a: " * 60 + "1" + "}" * 60,
            f"[{', '.join(map(str, range(20_000)))}]",
            f"{{{', '.join(f'k{i}: 1' for i in range(2_000))}}}",
            "9" * 6_000,
            "'" + "word " * 4_000 + "'",
        )
    )


def laughs(name: str) -> str:
    """Aliases of aliases: nine times nine times nine."""
    lines = [f"{name}0: &{name}0 [z, z, z, z, z, z, z, z, z]"]
    lines += [f"{name}{i}: &{name}{i} [{', '.join([f'*{name}{i - 1}'] * 9)}]" for i in range(1, 9)]
    return "\n".join(lines) + "\n"


def places(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The path of every value below a mapping or a list."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from places(inner, (*path, key))


def dumped(content: object) -> str:
    """As a file, a line for each value."""
    return str(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))


def parent(content: dict, path: tuple[object, ...]) -> dict | list:
    inside = content
    for step in path[:-1]:
        inside = inside[step]
    return inside


def shipped() -> dict[str, str]:
    """The studies that ship, by name."""
    return {path.parent.name: path.read_text() for path in sorted(STUDIES.glob("*/study.yaml"))}


def mutations(texts: Mapping[str, str], seed: int, count: int) -> Iterator[tuple[str, str]]:
    """(what was done to which, its text then), `count` times."""
    rng = random.Random(seed)
    values = [value for line in VALUES.strip().splitlines() for value in line.split("|")]
    contents = {name: yaml.load(text, yaml.CSafeLoader) for name, text in texts.items()}
    for _ in range(count):
        name = rng.choice(list(texts))
        content = copy.deepcopy(contents[name])
        path = rng.choice(list(places(content)))
        spelled = ".".join(map(str, path))
        inside, key = parent(content, path), path[-1]
        kind = rng.choices(
            ("value", "long", "drop", "rename", "add", "damage", "laughs", "twice"), (60, 6, 6, 8, 8, 8, 1, 3)
        )[0]
        if kind in ("value", "long"):
            put = rng.choice(values) if kind == "value" else long_values(rng)
            inside[key] = HOLE
            yield f"{name}: {spelled}={put[:30]}", dumped(content).replace(HOLE, put)
            continue
        if kind == "drop":
            del inside[key]
        elif kind == "rename" and isinstance(inside, dict):
            inside[str(key)[:-1] + rng.choice(TYPOS)] = inside.pop(key)
        elif kind == "add" and isinstance(inside, dict):
            inside[rng.choice(("zebra", "batch", "name", "path", "weights", "init"))] = rng.choice(
                ("zebra", 3, None, [], {})
            )
        text = dumped(content)
        if kind == "damage":
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice("3:-[]{}&*!|>'\"%@# \n\t,\0\x07é<") + text[at + rng.randrange(3) :]
        elif kind == "laughs":
            text = laughs(rng.choice("abc")) + text
        elif kind == "twice":
            lines = text.splitlines(keepends=True)
            at = rng.randrange(len(lines))
            text = "".join([*lines[:at], lines[at], *lines[at:]])
        yield f"{name}: {kind} {spelled}", text
