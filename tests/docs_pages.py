"""The code blocks of the documentation, as a reader meets them: page, line, language, file name, and what a comment says."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]  # of the copy, when the driver reads it there
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
COMMAND = re.compile(r"^(?:nas|make|\.venv/bin/\S+) ")  # how a line of a block without a language starts if it is one
MAY_NEED = ("cluster", "GPU", "network", "the extra executorch")  # the only reasons for a block that is not run


@dataclass(frozen=True)
class Block:
    """One block of code. `title` names the file that it is, `not_run` the reason why a test leaves it alone."""

    page: str
    line: int
    language: str
    title: str
    code: str
    not_run: str

    @property
    def name(self):
        return f"{self.page}:{self.line}"

    @property
    def commands(self):
        """Its shell commands, one a line; a backslash continues a line."""
        lines = self.code.replace("\\\n", " ").splitlines()
        if not self.language:
            lines = [line for line in lines if COMMAND.match(line)]
        return [line.strip() for line in lines if shlex.split(line, comments=True)]


def pages():
    """README.md and every page of docs/, in the order of their names."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path):
    """The blocks of one page. A comment speaks of the block that follows it."""
    found, reason = [], ""
    for token in MarkdownIt().parse(path.read_text(encoding="utf-8")):
        if token.type == "html_block" and (said := NOT_RUN.search(token.content)):
            reason = said[1]
        elif token.type in ("fence", "code_block"):
            language, _, options = token.info.strip().partition(" ")
            title = re.search(r'title="([^"]+)"', options)
            page = path.relative_to(ROOT).as_posix()
            found.append(Block(page, token.map[0] + 1, language, title[1] if title else "", token.content, reason))
            reason = ""
    return found


def verbs(app):
    """Every command of the command line, those of groups such as `nas supernet` included."""
    inner = [command for group in app.registered_groups for command in verbs(group.typer_instance)]
    return [*app.registered_commands, *inner]


def examples():
    """The examples in the help of each verb, as one block for each."""
    from nas.cli import app

    found = []
    for command in verbs(app):
        text = command.callback.__doc__ or ""
        lines = [said[1] for said in re.finditer(r"(?:Example:|^) +(nas .+)$", text, re.M)]
        code = command.callback.__code__
        page = Path(code.co_filename).resolve().relative_to(ROOT).as_posix()
        found.append(Block(page, code.co_firstlineno, "sh", "", "\n".join(lines), ""))
    return [block for block in found if block.code]
