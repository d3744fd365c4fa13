"""Programs that are run with `python -m refbuf run X` and with `python X`: what they print and
how they end must be the same. The fixtures that run them are in conftest.py."""

import platform
import subprocess
import sys
import sysconfig

import pytest

LIVE = (
    bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    and sys.platform == "linux"
    and platform.machine() == "x86_64"
)
live = pytest.mark.skipif(not LIVE, reason="live mode is for free-threaded CPython on x86-64 Linux")

# What a program can see of how it was started; addresses are those of that process.
ABOUT = """\
import re, sys

def clean(value):
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))

for name, value in list(globals().items()):
    print(name, "module" if name == "__builtins__" else clean(value))
print(sys.argv, sys.path, sys.flags, sys.warnoptions, sys._xoptions)
print(sys.modules["__main__"].__dict__ is globals(), sys.exc_info(), __name__)
print(re.sub(" at 0x[0-9a-f]+", "", repr(sys.modules["__main__"])))
"""


class Ended:
    """How a program ended, and what it said."""

    def __init__(self, command, stdin, **options):
        process = subprocess.run(command, input=stdin, capture_output=True, timeout=60, **options)
        self.returncode = process.returncode
        self.out = process.stdout.decode(errors="backslashreplace")
        self.err = process.stderr.decode(errors="backslashreplace")

    def __eq__(self, other):
        return (self.returncode, self.out, self.err) == (other.returncode, other.out, other.err)

    def __repr__(self):
        return f"<ended with {self.returncode}>\n{self.out}\n{self.err}"
