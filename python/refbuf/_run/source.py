"""From a file's content to its code. What is wrong with it is said in `python`'s words."""

import codecs
import marshal
from importlib.util import MAGIC_NUMBER
from types import CodeType

# Of a .pyc: the magic number, flags, and eight bytes that identify the source.
PYC_HEADER = 16
# What the name of an encoding is made of.
NAME = b"-._0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def is_compiled(path: str, content: bytes) -> bool:
    """Whether it is a .pyc file, whatever it is called."""
    return path.endswith(".pyc") or content[:4] == MAGIC_NUMBER


def load_compiled(content: bytes) -> CodeType:
    """The code in a .pyc file. RuntimeError where there is none."""
    if content[:4] != MAGIC_NUMBER:
        raise RuntimeError("Bad magic number in .pyc file")
    code = marshal.loads(content[PYC_HEADER:])
    if not isinstance(code, CodeType):
        raise RuntimeError("Bad code object in .pyc file")
    return code


def compile_source(source: bytes, path: str) -> CodeType:
    """The code of a source file. SyntaxError where it is none, or cannot be decoded."""
    problem = _decoding_problem(source, path)
    if problem is not None:
        raise SyntaxError(problem)
    return compile(source, path, "exec", dont_inherit=True)


def _decoding_problem(source: bytes, path: str) -> str | None:
    """What `python` says of a file that it cannot decode: compile() has other words."""
    named = [name for line in source.split(b"\n", 2)[:2] if (name := _named_encoding(line))]
    try:
        if named and codecs.lookup(named[0]).name == "utf-8":
            return None
        source.decode(*named[:1])
    except (LookupError, UnicodeError) as error:
        if named or not isinstance(error, UnicodeDecodeError):
            return f"encoding problem: {named[0]}"
        line = source.count(b"\n", 0, error.start) + 1
        return (
            f"Non-UTF-8 code starting with '\\x{source[error.start]:02x}' in file {path}"
            f" on line {line}, but no encoding declared; see https://peps.python.org/pep-0263/ for details"
        )
    return None


def _named_encoding(line: bytes) -> str | None:
    """The encoding that a comment names: coding, : or =, blanks, the name.

    By hand: re is slow to load, and is not to be loaded before the program.
    """
    if not line.lstrip(b" \t\f").startswith(b"#"):
        return None
    _, found, rest = line.partition(b"coding")
    while found:
        if rest[:1] in (b":", b"="):
            name = rest[1:].lstrip(b" \t")
            if length := len(name) - len(name.lstrip(NAME)):
                return name[:length].decode()
        _, found, rest = rest.partition(b"coding")
    return None
