#!/usr/bin/env python3
"""What a program needs to embed the interpreter that runs this.

Prints shell assignments: `link`, rustc's arguments, and `libraries`, the folder
of the shared library, where there is one. For the doc tests, which are programs
of their own.
"""

import shlex
import sys
import sysconfig


def main() -> int:
    folders = [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL")]
    arguments = [f"-L{folder}" for folder in folders if folder]
    arguments.append(f"-lpython{sysconfig.get_config_var('LDVERSION')}")
    for name in ("LIBS", "SYSLIBS", "LINKFORSHARED"):
        arguments += (sysconfig.get_config_var(name) or "").split()
    flags = " ".join(f"-C link-arg={argument}" for argument in arguments)
    print(f"link={shlex.quote(flags)}")
    print(f"libraries={shlex.quote(folders[0] or '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
