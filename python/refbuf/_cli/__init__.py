"""The commands of `python -m refbuf`, one module each, and what they share.

Little is loaded here, and argparse is in `parser`: a program that `run` starts may
have no use for it.
"""


class CommandError(Exception):
    """A command cannot go on: one sentence for the user, and exit status 2."""
