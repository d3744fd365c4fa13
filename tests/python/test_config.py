"""`python -m refbuf config`, and the functions behind it: what a compiler needs to know."""

import os
import pathlib
import re
import shlex
import subprocess
import sys
import sysconfig

import pytest
import refbuf


@pytest.fixture
def config(run_process):
    def run(*arguments, **options):
        return run_process([sys.executable, "-P", "-m", "refbuf", "config", *arguments], **options)

    return run


def test_each_option_prints_a_line_in_the_order_given(config):
    wanted = ["--version", "--shimdir", "--includes", "--cmakedir", "--pkgconfigdir", "--cflags"]
    found = config(*wanted).splitlines()
    flags = shlex.join(refbuf.get_cflags())
    include = shlex.join([f"-I{refbuf.get_include()}"])
    assert found == [
        refbuf.__version__,
        refbuf.get_shimdir(),
        include,
        refbuf.get_cmake_dir(),
        refbuf.get_pkgconfig_dir(),
        flags,
    ]


def test_the_shim_comes_before_all_others(config):
    (line,) = config("--cflags", "--shim").splitlines()
    flags = shlex.split(line)
    assert flags == refbuf.get_cflags(shim=True)
    assert flags[0] == f"-I{refbuf.get_shimdir()}"
    assert flags[1:] == refbuf.get_cflags()
    assert f"-I{sysconfig.get_path('include')}" in flags


def test_the_directories_hold_what_they_should():
    files = {
        refbuf.get_include(): ["refbuf.h", "refbuf_table.h", "refbuf_shim.h"],
        refbuf.get_shimdir(): ["Python.h"],
        refbuf.get_cmake_dir(): ["refbuf-config.cmake", "refbuf-config-version.cmake"],
        refbuf.get_pkgconfig_dir(): ["refbuf.pc", "refbuf-shim.pc"],
    }
    for directory, names in files.items():
        assert os.path.isabs(directory)
        for name in names:
            assert os.path.isfile(os.path.join(directory, name)), name
    # Python.h alone: the directory comes before all that the compiler knows.
    assert os.listdir(refbuf.get_shimdir()) == ["Python.h"]


def test_the_versions_in_files_are_refbufs():
    cmake = pathlib.Path(refbuf.get_cmake_dir(), "refbuf-config-version.cmake").read_text()
    assert re.findall(r'set\(PACKAGE_VERSION "(.*?)"\)', cmake) == [refbuf.__version__]
    for name in ("refbuf.pc", "refbuf-shim.pc"):
        text = pathlib.Path(refbuf.get_pkgconfig_dir(), name).read_text()
        assert re.findall(r"^Version: (.*)$", text, re.MULTILINE) == [refbuf.__version__]


def test_what_was_not_asked_for_is_said(config):
    wanted = "--cflags, --includes, --shimdir, --cmakedir, --pkgconfigdir, --version"
    message = f"refbuf: config: nothing asked for: give one or more of {wanted}\n"
    assert config(returncode=2, stderr=message) == ""
    message = "refbuf: config: --shim goes with --cflags\n"
    for arguments in ("--shim",), ("--includes", "--shim"):
        assert config(*arguments, returncode=2, stderr=message) == ""


def test_nobody_reads_what_is_printed():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        command = [sys.executable, "-m", "refbuf", "config", "--cflags"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
    # As a process that the system ends for it.
    assert (done.returncode, done.stderr) == (141, "")
