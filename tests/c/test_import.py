"""refbuf_import(): what serves before it, and how it refuses."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path

import pytest

from c_build import CPP, C, Compiler, build_module, refbuf_include, run_python

assert C is not None and CPP is not None


def build_probe(folder: Path, compiler: Compiler, edit: tuple[str, str] | None = None) -> None:
    """The probe, against a copy of the header in which `edit` is made."""
    include = folder / "include"
    include.mkdir()
    header = (refbuf_include() / "refbuf.h").read_text()
    if edit is not None:
        assert header.count(edit[0]) == 1, f"the header has not one line of the form {edit[0]!r}"
        header = header.replace(*edit)
    (include / "refbuf.h").write_text(header)
    shutil.copy(refbuf_include() / "refbuf_table.h", include)
    build_module("probe", folder, (compiler, "probe.c"), include=include)


def import_error(folder: Path, prologue: str = "") -> str:
    """The text of the ImportError that importing the probe raises."""
    code = textwrap.dedent(
        """
        try:
            import probe
        except ImportError as refusal:
            print(refusal)
        else:
            print("imported")
        """
    )
    result = run_python(textwrap.dedent(prologue) + code, folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("compiler", [C, CPP], ids=str)
def test_a_matching_header_imports(compiler: Compiler, tmp_path: Path) -> None:
    build_probe(tmp_path, compiler)
    assert import_error(tmp_path) == "imported"


@pytest.mark.parametrize("compiler", [C, CPP], ids=str)
def test_another_abi_version_is_refused(compiler: Compiler, tmp_path: Path) -> None:
    header = (refbuf_include() / "refbuf.h").read_text()
    (line,) = re.findall(r"^#define REFBUF_ABI_VERSION .*$", header, re.MULTILINE)
    build_probe(tmp_path, compiler, (line, "#define REFBUF_ABI_VERSION 99u"))
    refusal = import_error(tmp_path)
    assert "ABI version 99" in refusal and "rebuild" in refusal


def test_a_larger_table_than_the_installed_one_is_refused(tmp_path: Path) -> None:
    assert C is not None
    build_probe(tmp_path, C, ("} RefBuf_API;", "    void (*Later)(void);\n} RefBuf_API;"))
    assert "rebuild" in import_error(tmp_path)


def test_a_refusal_leaves_other_extensions_and_refbuf_usable(tmp_path: Path, extensions: Path) -> None:
    assert C is not None
    header = (refbuf_include() / "refbuf.h").read_text()
    (line,) = re.findall(r"^#define REFBUF_ABI_VERSION .*$", header, re.MULTILINE)
    build_probe(tmp_path, C, (line, "#define REFBUF_ABI_VERSION 99u"))
    code = f"""
        sys.path.insert(0, {str(extensions)!r})
        for attempt in range(3):
            try:
                import probe
            except ImportError as refusal:
                assert "ABI" in str(refusal)
            else:
                raise SystemExit("the probe was imported")
            import torture_c, refbuf
            torture_c.connect()
            torture_c.evaluates_once(object())
            refbuf.flush_all()
        print("usable")
    """
    result = run_python(textwrap.dedent(code), tmp_path)
    assert result.stdout.strip() == "usable", result.stderr


def test_a_missing_refbuf_is_an_import_error(tmp_path: Path) -> None:
    assert C is not None
    build_probe(tmp_path, C)
    assert "refbuf" in import_error(tmp_path, "sys.modules['refbuf'] = None\n")


def test_a_refbuf_without_the_capsule_is_an_import_error(tmp_path: Path) -> None:
    assert C is not None
    build_probe(tmp_path, C)
    prologue = """
        import types
        sys.modules["refbuf"] = types.ModuleType("refbuf")
    """
    assert "refbuf" in import_error(tmp_path, prologue)


def test_another_object_in_the_capsules_place_is_an_import_error(tmp_path: Path) -> None:
    assert C is not None
    build_probe(tmp_path, C)
    prologue = """
        import types
        sys.modules["refbuf"] = types.ModuleType("refbuf")
        sys.modules["refbuf"]._C_API = 7
    """
    assert "refbuf" in import_error(tmp_path, prologue)


def test_importing_twice_is_harmless(extensions: Path) -> None:
    code = """
        import torture_c
        for attempt in range(3):
            torture_c.connect()
            torture_c.evaluates_once([])
        print(torture_c.import_state()[0])
    """
    result = run_python(textwrap.dedent(code), extensions)
    assert result.stdout.strip() == "1", result.stderr


@pytest.mark.parametrize("name", ["torture_c", "torture_cpp"])
def test_before_the_import_counts_are_cpythons(name: str, extensions: Path) -> None:
    code = f"""
        import threading
        import refbuf
        import {name} as torture

        things = [object(), []]
        maker = threading.Thread(target=lambda: things.append([]))
        maker.start()
        maker.join()
        assert torture.import_state()[0] == 0
        assert set(torture.stats().values()) == {{0}}
        for thing in things:
            hits = refbuf.stats().hits
            before = torture.refcount(thing)
            for acquirer in torture.acquirer_names():
                for releaser in torture.releaser_names():
                    torture.acquire(acquirer, thing, 100)
                    assert torture.refcount(thing) == before + 100, acquirer
                    torture.flush()
                    torture.flush_all()
                    torture.release(releaser, thing, 100)
                    assert torture.refcount(thing) == before, (acquirer, releaser)
            torture.evaluates_once(thing)
            torture.accepts_null(thing)
            assert refbuf.stats().hits == hits
        # References taken before the import are dropped after it, and the other way round.
        before = [torture.refcount(thing) for thing in things]
        for thing in things:
            torture.acquire("RefBuf_INCREF", thing, 7)
        torture.connect()
        assert torture.import_state()[0] == 1
        for thing in things:
            torture.release("RefBuf_DECREF", thing, 7)
        assert before == [torture.refcount(thing) for thing in things]
        print("exact")
    """
    result = run_python(textwrap.dedent(code), extensions)
    assert result.stdout.strip() == "exact", result.stderr
