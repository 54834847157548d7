"""The command line: `nas VERB`. What each verb does is in nas.commands; here is how a command ends."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

import typer

from nas.commands import decoders, models, runs, schedules, spaces, studies
from nas.errors import ArgumentError, InputError
from nas.failures import disk_trouble
from nas.interruption import Interrupted, Terminated, exit_code

app = typer.Typer(
    help="Architecture search and ablation for text-to-image diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)
for group in (studies, runs, models, schedules, decoders, spaces):
    app.add_typer(group.app)


def _leave(code: int) -> NoReturn:
    """End without the seconds that Python takes to free what is loaded: the scheduler that said so does not wait."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    """Entry point: an InputError is one line and exit code 2; an interrupt, or a full disk, says how to go on."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        dashes = "--" if isinstance(error, ArgumentError) else ""
        print(f"nas: {dashes}{error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted:  # whoever raised it has said so
        sys.exit(exit_code())
    except Terminated:
        print("\nnas: told to end; the same command goes on from here", file=sys.stderr)
        _leave(exit_code())
    except Exception as error:  # a library's own class too: safetensors' is no OSError
        trouble = disk_trouble(error)
        if trouble is None:
            raise
        print(
            f"nas: {trouble}; nothing finished is lost, the same command goes on once that is repaired", file=sys.stderr
        )
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nnas: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
