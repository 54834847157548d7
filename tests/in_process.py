"""The command line in this process, as the console sees it: a command takes no seconds to import what a test has imported."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
from at_once import InProcess


def nas(*arguments):
    """What `nas ARGUMENTS` prints and returns. Trials are computed here too, and signals are left alone."""
    import nas.cli
    import nas.interruption
    import nas.study.run
    import nas.workers.preload

    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(nas.study.run, "Workers", InProcess)
        patch.setattr(nas.workers.preload, "start", lambda: None)
        patch.setattr(nas.interruption, "install_in_coordinator", lambda: None)
        patch.setattr(sys, "argv", ["nas", *arguments])
        try:
            nas.cli.main()
        except SystemExit as left:
            code = left.code or 0
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())
