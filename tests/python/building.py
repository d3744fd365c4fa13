"""Compiles the C extension that tests count with."""

import pathlib
import shlex
import subprocess
import sysconfig

import refbuf

HERE = pathlib.Path(__file__).parent


def compile_extension(name, directory, *flags, include=None, source="countext.c"):
    """Compiles a source of this folder as a module of that name into the directory."""
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    target = pathlib.Path(directory) / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wundef", "-Werror"]
    where = ["-isystem", sysconfig.get_path("include"), f"-I{include or refbuf.get_include()}"]
    named = [f"-DCOUNTEXT_NAME={name}", *flags]
    files = [str(HERE / "ext" / source), "-o", str(target)]
    command = [*compiler, "-shared", "-fPIC", "-pthread", "-O2", *strict, *where, *named, *files]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
