"""The command, in a process of its own or in this one."""

import contextlib
import io
import subprocess
import sys

from ffalora_jax import cli


def python(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        check=False,
    )


def ffalora(*arguments, cwd=None, code=0):
    """Runs the command; returns its standard output."""
    done = python("-m", "ffalora_jax.cli", *map(str, arguments), cwd=cwd)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def here(*arguments, code=0):
    """The same in this process, which saves the seconds of a start."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert cli.main([str(argument) for argument in arguments]) == code
    return shown.getvalue()
