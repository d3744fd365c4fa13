"""refbuf.h as extensions use it: the import, and each macro and function."""

import importlib.util
import pathlib
import re
import shutil
import sys
import sysconfig

import pytest
import refbuf
from building import compile_extension

import countext
import countext_too
from support import Plain, Tracked, Worker, give_credits, wait_until


@pytest.fixture(params=[countext, countext_too], ids=lambda module: module.__name__)
def extension(request):
    return request.param


INCREMENTS = ("incref", "incref_call", "xincref", "xincref_call", "stock_incref")
DECREMENTS = ("decref", "decref_call", "xdecref", "xdecref_call", "stock_decref")


@pytest.mark.parametrize("down", DECREMENTS)
@pytest.mark.parametrize("up", INCREMENTS)
def test_every_increment_and_decrement_counts_one(extension, up, down):
    thing = Plain()
    address, before = id(thing), sys.getrefcount(thing)
    with Worker() as worker:
        for do in (lambda function, *arguments: function(*arguments)), worker.do:
            do(getattr(extension, up), address, 25)
            assert refbuf.refcount(thing) == extension.count(address) + 1 == before + 25
            do(getattr(extension, down), address, 25)
            assert refbuf.refcount(thing) == before
    refbuf.flush_all()
    assert sys.getrefcount(thing) == extension.stock_count(address) + 1 == before


def test_new_references_are_references(extension):
    thing, held = Plain(), []
    address, before = id(thing), sys.getrefcount(thing)

    def make(function):
        held.extend(function(address) for _ in range(30))

    with Worker() as worker:
        for function in extension.new_ref, extension.xnew_ref:
            worker.do(make, function)
            assert [reference is thing for reference in held] == [True] * 30
            assert refbuf.refcount(thing) == before + 30
            held.clear()
            refbuf.flush_all()
            assert sys.getrefcount(thing) == before


def test_null_is_harmless_where_the_name_has_an_x(extension):
    with Worker() as worker:
        assert extension.count_null() is True
        assert worker.do(extension.count_null) is True


def test_replacing_macros_evaluate_once_and_drop_what_they_replace(extension):
    first, second = Plain(), Plain()
    before = sys.getrefcount(first), sys.getrefcount(second)
    with Worker() as worker:
        for do in (lambda function, *arguments: function(*arguments)), worker.do:
            clears, sets, xsets, held = do(extension.replace, first, second)
            assert (clears, sets, xsets) == (1, 1, 1)
            assert held is second
            del held
    refbuf.flush_all()
    assert (sys.getrefcount(first), sys.getrefcount(second)) == before


def test_a_finalizer_sees_the_variable_changed_already(extension):
    """RefBuf_CLEAR and its kin change the variable before they drop."""
    log = []
    with Worker() as worker:
        worker.do(extension.replace, Tracked(log, "first"), Tracked(log, "second"))
    assert wait_until(lambda: sorted(log) == ["first", "second"])


@pytest.mark.needs_buffering
def test_all_extensions_of_a_process_share_the_threads_buffer():
    thing = Plain()
    refbuf.configure(heartbeat_ms=1000)
    with Worker() as worker:
        give_credits(worker, id(thing))
        before = refbuf.stats()
        worker.do(countext_too.touch, id(thing), 500)
        after = refbuf.stats()
        assert after.hits - before.hits == 1_000
        assert after.threads == before.threads
        assert countext.stats()["credits"] == countext_too.stats()["credits"] == after.credits


def test_many_extensions_may_be_loaded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    thing = Plain()
    before = sys.getrefcount(thing)
    with Worker() as worker:
        for number in range(4):
            compile_extension(f"countext_{number}", tmp_path)
            module = importlib.import_module(f"countext_{number}")
            worker.do(module.incref, id(thing), 10)
            worker.do(countext.decref, id(thing), 10)
            assert refbuf.refcount(thing) == before


def load(name, directory):
    path = pathlib.Path(directory) / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def header_with(tmp_path, pattern, replacement):
    header = (pathlib.Path(refbuf.get_include()) / "refbuf.h").read_text()
    header, changed = re.subn(pattern, replacement, header)
    assert changed == 1
    (tmp_path / "refbuf.h").write_text(header)
    shutil.copy(pathlib.Path(refbuf.get_include()) / "refbuf_table.h", tmp_path)
    return tmp_path


def test_an_extension_of_another_abi_version_is_refused_with_both_versions(tmp_path):
    define = r"(#define REFBUF_ABI_VERSION )(\d+)u"
    version = re.search(define, (pathlib.Path(refbuf.get_include()) / "refbuf.h").read_text())[2]
    include = header_with(tmp_path, define, r"\g<1>987u")
    compile_extension("countext_other", tmp_path, include=include)
    with pytest.raises(ImportError, match=rf"version 987 .*version {version} .*(rebuild|install)"):
        load("countext_other", tmp_path)


def test_an_extension_that_knows_a_larger_table_is_refused(tmp_path):
    """Built with a newer header of the same version, which has more functions."""
    include = header_with(tmp_path, r"(\} RefBuf_API;)", r"    void (*Newer)(void);\n\1")
    compile_extension("countext_newer", tmp_path, include=include)
    with pytest.raises(ImportError, match="refbuf"):
        load("countext_newer", tmp_path)


def test_an_extension_without_refbuf_is_refused(run_python):
    run_python(
        """
        import sys
        sys.modules["refbuf"] = None
        try:
            import countext
        except ImportError as error:
            assert "refbuf" in str(error), error
        else:
            raise AssertionError("it was imported")
        """
    )


def test_a_refbuf_without_a_c_api_is_refused(run_python):
    run_python(
        """
        import sys, types
        sys.modules["refbuf"] = types.ModuleType("refbuf")
        for wrong in None, 7:
            if wrong is not None:
                sys.modules["refbuf"]._C_API = wrong
            try:
                import countext
            except ImportError as error:
                assert "refbuf" in str(error), error
            else:
                raise AssertionError("it was imported")
        """
    )


def test_an_extension_that_goes_on_without_refbuf_counts_as_the_interpreter_does(tmp_path, run_python):
    compile_extension("countext_tolerant", tmp_path, "-DCOUNTEXT_TOLERANT")
    run_python(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        sys.modules["refbuf"] = None
        import countext_tolerant as countext
        assert countext.refused
        del sys.modules["refbuf"]
        thing = object()
        before = sys.getrefcount(thing)
        countext.incref(id(thing), 5)
        countext.incref_call(id(thing), 5)
        assert sys.getrefcount(thing) == before + 10
        assert countext.count(id(thing)) + 1 == before + 10
        countext.decref(id(thing), 5)
        countext.decref_call(id(thing), 5)
        countext.flush()
        countext.flush_all()
        assert countext.stats() == dict.fromkeys(("hits", "credits", "slots", "buffer_bytes"), 0)
        assert sys.getrefcount(thing) == before
        """
    )


def test_stats_in_c_are_those_in_python():
    sums = refbuf.stats()
    in_c = countext.stats()
    assert in_c["slots"] == sums.slots
    assert in_c["buffer_bytes"] == sums.buffer_bytes
    assert in_c["hits"] == sums.hits
