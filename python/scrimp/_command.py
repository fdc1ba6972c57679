"""The entry point of the ``scrimp`` command, which is part of the extension module."""

import signal
import sys

from . import _scrimp


def main() -> int:
    """Runs the command line of this process and returns the exit status."""
    # The command installs its own handler. Python's handler waits until the interpreter runs again.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _scrimp.command(sys.argv)
