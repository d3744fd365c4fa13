"""`python -m refbuf bench --extensions`: what is built and how it is checked, with a package of
one file in place of those from the network; what is asked for, said and written; the arithmetic.
What is measured is never asserted."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tarfile

import pytest
import refbuf
from refbuf._bench.measure import Cell, Matrix
from refbuf._extbench import measure, packages, report
from refbuf._extbench.measure import ALL_VARIANTS, LIVE_VARIANTS, VARIANTS, Counts, summarize
from refbuf._extbench.packages import PACKAGES, BuildError, Package, Sdist, provide
from refbuf._extbench.program import FEWER, fewer
from refbuf._extbench.workloads import WORKLOADS
from refbuf._pybench.measure import ChildError, rows
from refbuf._pybench.runner import Answer

from support import BUFFERED, wait_until

OBSTACLE = refbuf._refbuf.live_obstacle()
LIVE = OBSTACLE is None
live = pytest.mark.skipif(not LIVE, reason="live mode is for free-threaded builds on x86-64 Linux")

ROW = {"workload", "variant", "threads", "ns_per_pair", "scaling", "atomics_per_1000_pairs"}
COMMAND = (sys.executable, "-P", "-m", "refbuf", "bench", "--extensions")

SOURCE = """\
#include <Python.h>

static PyObject *look_up(PyObject *module, PyObject *shared)
{
    PyObject *item = PyTuple_GET_ITEM(shared, 0);
    (void)module;
    Py_INCREF(item);
    Py_INCREF(item);
    Py_DECREF(item);
    return item;
}

static PyMethodDef methods[] = {{"look_up", look_up, METH_O, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef_Slot slots[] = {{0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "tiny", NULL, 0, methods, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_tiny(void) { return PyModuleDef_Init(&definition); }
"""
SETUP = """\
from setuptools import Extension, setup
setup(name="tiny", version="1.0", ext_modules=[Extension("tiny", ["tiny.c"])])
"""
PYPROJECT = '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'

# As the command's main, with tiny in the place of the packages.
TINY = """\
import sys
from refbuf._extbench import measure, packages, workloads
from refbuf._extbench.packages import Package, Sdist
from refbuf._extbench.workloads import Use
file, digest, program = sys.argv[1:4]
packages.PACKAGES.clear()
packages.PACKAGES["tiny"] = Package(Sdist("tiny", "1.0", digest, file), isolated=False)
workloads.WORKLOADS.clear()
workloads.WORKLOADS["tiny"] = Use("tiny", "shared[0](shared[1])", None)
measure.PROGRAM = program
from refbuf.__main__ import main
sys.exit(main(["bench", "--extensions", *sys.argv[4:]]))
"""
# As a run's program.
PROGRAM = """\
import json, os, runpy, sys
there = os.environ["EXTBENCH"]
sys.path[:0] = [os.path.dirname(there), sys.argv[4]]
from _extbench import workloads

class Thing:
    pass

def make():
    from tiny import look_up
    return look_up, (Thing(),)

workloads.WORKLOADS["tiny"] = workloads.Use("tiny", "shared[0](shared[1])", make)
from _extbench.program import main
main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Makes a source distribution of one C file; the builder's word for it."""

    def make(source=SOURCE, setup=SETUP, **fields):
        directory = tmp_path_factory.mktemp("sdist")
        file = directory / "tiny-1.0.tar.gz"
        about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n"
        contents = {"tiny.c": source, "setup.py": setup, "pyproject.toml": PYPROJECT, "PKG-INFO": about}
        with tarfile.open(file, "w:gz") as archive:
            for name, content in contents.items():
                (directory / name).write_text(content)
                archive.add(directory / name, f"tiny-1.0/{name}")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return Package(Sdist("tiny", "1.0", digest, str(file))._replace(**fields), isolated=False)

    return make


@pytest.fixture(scope="module")
def built(sdist, tmp_path_factory):
    """Tiny's source, the cache with its builds, where these are, and what was said meanwhile."""
    cache = tmp_path_factory.mktemp("a cache")  # with a space
    package, said = sdist(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        places = provide([package], said.append)
        assert provide([package], said.append) == places  # at once
    return package, cache, places, said


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    """A cache, and that it has nothing afterwards, half-built or whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not os.path.isdir(packages.cache()) or not os.listdir(packages.cache())


@pytest.fixture
def fails(run_process, tmp_path):
    """Runs the command, which must end with this one sentence, and write nothing."""

    def run(sentence, *arguments, **options):
        command = [*COMMAND, *arguments, "--json", "bench.json"]
        env = {"XDG_CACHE_HOME": str(tmp_path), **options}
        run_process(command, cwd=tmp_path, returncode=2, stderr=f"refbuf: bench: {sentence}\n", env=env)
        assert not list(tmp_path.iterdir())

    return run


@pytest.fixture
def bench(run_process, built, tmp_path):
    """Runs the command with tiny for the packages."""
    package, cache, _, _ = built
    program = tmp_path / "run.py"
    program.write_text(PROGRAM)
    there = os.path.dirname(os.path.abspath(packages.__file__))

    def run(*arguments, **options):
        file = tmp_path / "bench.json"
        source = package.source
        command = [sys.executable, "-P", "-c", TINY, source.file, source.sha256, program, *arguments]
        env = {"XDG_CACHE_HOME": str(cache), "EXTBENCH": there}
        options.setdefault("stderr", None)
        out = run_process([*command, "--json", file], cwd=tmp_path, env=env, **options)
        return out, json.loads(file.read_text()) if file.exists() else None

    return run


def answer(per_second, *, counts=None, atomics=0, **fields):
    """What a process could have told."""
    usual = {
        "operations": 1000,
        "cpu_share": 1.0,
        "install_seconds": None,
        "sites": None,
        "gil_enabled": False,
        "atomics": None if counts is None else atomics,
    }
    return Answer(per_second=per_second, counts=counts, **{**usual, **fields})


# -- the builder --------------------------------------------------------------


def test_both_builds_are_made_once_and_differ_in_the_shim(built):
    _, cache, places, said = built
    assert said == ["building tiny 1.0, stock", "building tiny 1.0, shim"]
    directories = {pathlib.Path(place) for place in places.values()}
    (parent,) = {place.parent for place in directories}
    assert parent.is_relative_to(cache / "refbuf" / "extensions")
    assert refbuf.__version__ in parent.name
    # And nothing else is left there.
    assert set(parent.iterdir()) == directories == {parent / "tiny-1.0-stock", parent / "tiny-1.0-shim"}
    for (_, build), place in places.items():
        (module,) = pathlib.Path(place).glob("tiny*.so")
        assert (b"refbuf._C_API" in module.read_bytes()) == (build == "shim")


def test_the_flags_are_the_interpreters_and_the_shims():
    assert packages._flags("stock") == "-O2 -DNDEBUG"
    assert packages._flags("shim").startswith("-O2 -DNDEBUG ") and "shim" in packages._flags("shim")


def test_the_cache_is_where_the_specification_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pathlib.Path(packages.cache()).parent == tmp_path / "refbuf" / "extensions"
    monkeypatch.setenv("HOME", str(tmp_path))
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert pathlib.Path(packages.cache()).is_relative_to(tmp_path / ".cache" / "refbuf")


def test_a_source_with_another_hash_is_not_built(sdist, empty_cache):
    package = sdist(sha256="0" * 64)
    with pytest.raises(BuildError, match=f"^the source of tiny 1.0 has the hash .*, not {'0' * 64}$"):
        provide([package], lambda _: None)


def test_what_does_not_compile_leaves_nothing_and_says_where(sdist, empty_cache):
    package = sdist(SOURCE + "nonsense;\n#error no\n")
    with pytest.raises(
        BuildError, match=r"^cannot build tiny 1\.0 \(stock\): tiny\.c:\d+:.* error: "
    ) as caught:
        provide([package], lambda _: None)
    assert "\n" not in str(caught.value)


def test_what_has_no_extension_module_is_no_build(sdist, tmp_path):
    (tmp_path / "tiny.py").touch()
    with pytest.raises(BuildError, match=r"^tiny 1\.0 was built without an extension module$"):
        packages._verify(str(tmp_path), sdist(), "stock")


def test_a_build_that_the_flags_did_not_reach_is_found(built):
    package, _, places, _ = built
    with pytest.raises(BuildError, match=r"^tiny 1\.0 \(shim\) was built without the shim: tiny\..*so$"):
        packages._verify(places["tiny", "stock"], package, "shim")
    with pytest.raises(BuildError, match=r"^tiny 1\.0 \(stock\) was built with the shim: tiny\..*so$"):
        packages._verify(places["tiny", "shim"], package, "stock")


def test_without_pip_or_a_compiler_nothing_is_begun(monkeypatch, sdist, empty_cache):
    monkeypatch.setenv("CC", "no-such-compiler -pthread")
    with pytest.raises(BuildError, match="a C compiler, and no-such-compiler cannot be found"):
        provide([sdist()], lambda _: None)
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    with pytest.raises(BuildError, match="with pip, which this python does not have"):
        provide([sdist()], lambda _: None)


def test_why_pip_failed_is_one_line():
    compiler = "  building\n  a.c:3:1: error: expected ';'\n  error: command failed\nERROR: Failed to build"
    assert packages._why(compiler) == "a.c:3:1: error: expected ';'"
    assert packages._why("WARNING: x\nERROR: none\nERROR: No match\nnote: x") == "No match"
    unreachable = "WARNING: Retrying (Retry(total=1)) after connection broken\nERROR: No match"
    assert packages._why(unreachable) == "the package index cannot be reached"
    assert packages._why("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES. If") == (
        "what comes has not the hash that is pinned"
    )
    assert packages._why("Killed\n\n") == "Killed"
    assert packages._why("") == "pip says nothing"


def test_versions_and_hashes_are_pinned():
    for name, package in PACKAGES.items():
        assert package.source.name == name and package.isolated
        for source in (package.source, *package.needs):
            assert source.file is None and len(source.sha256) == 64
    assert {use.package for use in WORKLOADS.values()} == set(PACKAGES)


# -- the command --------------------------------------------------------------


def test_tiny_is_measured_stock_and_shim(bench, built, tmp_path):
    chosen = ("--threads", "2", "--rounds", "1", "--seconds", "0.05")
    out, found = bench(*chosen, "--plot", tmp_path / "bench.png")
    cells = [(row["workload"], row["threads"], row["variant"]) for row in found["rows"]]
    assert cells == [("tiny", threads, variant) for threads in (1, 2) for variant in VARIANTS]
    assert all(set(row) == ROW and row["ns_per_pair"] > 0 for row in found["rows"])
    counted = {row["variant"]: row["atomics_per_1000_pairs"] is not None for row in found["rows"]}
    assert counted == {"stock": False, "shim": BUFFERED}
    meta, words = found["meta"], " ".join(out.split())
    assert meta["packages"] == {"tiny": "1.0"} and meta["gil_enabled"] == (not BUFFERED)
    assert meta["command"].startswith("python -m refbuf bench --extensions --threads 2")
    assert "measured too, for comparison: 1 thread" in words
    assert "With 2 threads shim has" in words and ("has a GIL" in words) == (not BUFFERED)
    assert [each["threads"] for each in meta["summary"]] == [1, 2]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    if BUFFERED:
        counts = meta["counts"]["tiny"]
        # Its own: two increments and a decrement.
        assert counts["extension_counts_per_op"] == pytest.approx(3, abs=0.2)
        assert (counts["interpreter_share"] is not None) == LIVE
    else:
        assert meta["counts"] == {}


@live
def test_live_variants_are_measured_too(bench):
    _, found = bench("--live", "--threads", "1", "--rounds", "1", "--seconds", "0.05")
    assert [row["variant"] for row in found["rows"]] == list(ALL_VARIANTS)
    counts = found["meta"]["counts"]["tiny"]
    # At the least what is called, its argument and its result are the interpreter's to count.
    assert counts["interpreter_counts_per_op"] > 1 and 0 < counts["interpreter_share"] < 1
    # What extension and interpreter count is one sum, whichever build counts it.
    assert found["meta"]["live"] and counts["counts_per_op"] > 4


def test_help_of_bench_names_it(run_process):
    assert "--extensions" in run_process([sys.executable, "-P", "-m", "refbuf", "bench", "--help"])
    out = run_process([*COMMAND, "--help"])
    assert "shim" in out and "--variants" not in out and all(name in out for name in PACKAGES)


# -- errors -------------------------------------------------------------------


@pytest.mark.parametrize(("option", "value"), [("--variants", "stock"), ("--work-ns", "0")])
def test_options_of_the_other_benchmark_are_refused(fails, option, value):
    fails(f"{option} is not for --extensions, which measures stock and shim", option, value)


def test_other_bad_usage_is_one_sentence(fails):
    fails(f"unknown workload 'shared': there are {', '.join(WORKLOADS)}", "--workloads", "shared")
    fails("--threads takes whole numbers from 1 to 4096 with commas between, not '0'", "--threads", "0")
    fails("argument --rounds: must be from 1 to 1000, not 0", "--rounds", "0")
    fails("--python and --extensions are two benchmarks: run one after the other", "--python")


@pytest.mark.skipif(LIVE, reason="live mode is possible here")
def test_where_live_mode_is_not_possible_it_cannot_be_asked_for(fails):
    fails(f"--live: {OBSTACLE}", "--live")


def test_what_cannot_be_built_is_one_sentence(fails):
    sentence = "packages are built with a C compiler, and no-such-compiler cannot be found"
    fails(f"--extensions: {sentence}", CC="no-such-compiler")


def test_an_interrupt_leaves_no_process_and_nothing_half_built(
    sdist, environment, empty_cache, tmp_path_factory
):
    told = tmp_path_factory.mktemp("told") / "pid"
    os.mkfifo(told)
    setup = f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    source = sdist(setup=setup).source
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", TINY, source.file, source.sha256, "", "--threads", "1"],
        env=environment | {"XDG_CACHE_HOME": str(empty_cache)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        builder = int(told.read_text())  # waits for it
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err == "building tiny 1.0, stock\nrefbuf: interrupted\n"
        assert wait_until(lambda: not is_alive(builder))
    finally:
        process.kill()


def is_alive(process):
    """Whether it runs; one that its parent has not waited for does not."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.needs_buffering
def test_a_shim_that_does_not_count_is_an_error(monkeypatch):
    told = {"stock": 5, "shim": None}
    monkeypatch.setattr(measure, "ask", lambda cell, *_, **__: answer(1.0, counts=told[cell.variant]))
    places = {("lru-dict", build): "nowhere" for build in VARIANTS}
    for variant, how in (("shim", "counted nothing through refbuf"), ("stock", "counted through refbuf")):
        with pytest.raises(ChildError, match=f"^lru-get, {variant}: the package {how}$"):
            measure.run(Cell("lru-get", 1, variant), 0.1, places)


# -- what is run, and arithmetic ----------------------------------------------


def test_what_is_run_for_each_variant(monkeypatch):
    asked = {}

    def ask(cell, line, seconds, *, live, changes):
        asked[cell.variant] = (line[2:4] == ["-m", "refbuf"], line[-1], live, changes)
        return answer(1.0, counts=1 if "shim" in cell.variant or live else None)

    monkeypatch.setattr(measure, "ask", ask)
    places = {("lru-dict", build): f"/{build}" for build in VARIANTS}
    for variant in ALL_VARIANTS:
        measure.run(Cell("lru-get", 1, variant), 0.1, places)
    assert {variant: told[:3] for variant, told in asked.items()} == {
        "stock": (False, "/stock", False),
        "shim": (False, "/shim", False),
        "stock-live": (True, "/stock", True),
        "shim-live": (True, "/shim", True),
    }
    required = [asked[variant][3]["REFBUF_REQUIRE"] for variant in ALL_VARIANTS]
    assert required == (["0", "1", "0", "1"] if BUFFERED else ["0"] * 4)
    assert all(told[3].get("PYTHON_GIL") == ("0" if BUFFERED else None) for told in asked.values())


@pytest.mark.needs_buffering
def test_who_counts_follows_from_runs_with_the_shim_live_and_not(monkeypatch):
    told = {
        "stock": answer(10.0),
        "shim": answer(20.0, counts=6000, atomics=500),
        "shim-live": answer(30.0, counts=8000, sites=1800),
    }
    monkeypatch.setattr(measure, "run", lambda cell, *_: told[cell.variant])
    matrix = Matrix(workloads=("lru-get",), threads=(1,), variants=VARIANTS, rounds=3)
    found = measure.measure(matrix, 0.5, 2, {}, lambda *_: None, live_possible=True)
    counts = found.counts["lru-get"]
    assert counts == Counts(extension=6.0, interpreter=2.0, atomics=0.5)
    assert (counts.all, counts.share, counts.left) == (8.0, 0.25, 2.5)
    assert [row.to_stock for row in found.rows] == [1, 2] and found.rounds == 3
    # Measured in any case, they are not measured once more.
    matrix = matrix._replace(variants=("stock", "shim", "shim-live"))
    heard = []
    told["shim-live"] = answer(30.0, counts=9000, sites=1800)
    monkeypatch.setattr(measure, "run", lambda cell, *_: heard.append(cell) or told[cell.variant])
    found = measure.measure(matrix, 0.5, 2, {}, lambda *_: None, live_possible=True)
    assert found.counts["lru-get"].interpreter == 3 and len(heard) == 9
    # Where live mode is not possible, nobody knows.
    matrix = matrix._replace(variants=VARIANTS)
    counts = measure.measure(matrix, 0.5, 2, {}, lambda *_: None, live_possible=False).counts["lru-get"]
    assert counts == Counts(6.0, None, 0.5) and (counts.all, counts.share, counts.left) == (None,) * 3
    assert "not known, as it takes live mode to see them: why" in report.shares_line({}, "why")


def test_the_summary_is_of_each_number_of_threads():
    samples = {
        Cell(workload, threads, variant): [answer(per_second)]
        for workload, threads, variant, per_second in [
            ("lru-get", 1, "stock", 10.0),
            ("lru-get", 1, "shim", 9.0),
            ("lru-get", 2, "stock", 5.0),
            ("lru-get", 2, "shim", 10.0),
            ("msgpack-list", 1, "stock", 1.0),
            ("msgpack-list", 1, "shim", 1.0),
            ("msgpack-list", 2, "stock", 1.0),
            ("msgpack-list", 2, "shim", 8.0),
        ]
    }
    one, two = summarize(rows(samples, measure._place))
    assert (one.variant, two.variant) == ("shim", "shim")
    assert (one.threads, one.lowest, one.lowest_workload, one.highest) == (1, 0.9, "lru-get", 1.0)
    assert (two.mean, two.highest, two.highest_workload) == (pytest.approx(4), 8.0, "msgpack-list")
    line = report.summary([one, two])[1]
    assert line.startswith(
        "With 2 threads shim has 4.00 of stock's throughput in the geometric mean, from 2.00"
    )
    (line,) = report.summary([two._replace(highest_workload=two.lowest_workload)])
    assert line == "With 2 threads shim has 4.00 of stock's throughput."


def test_every_variant_has_its_place_and_its_overhead():
    assert set(measure.OVERHEAD) == set(VARIANTS + LIVE_VARIANTS) == set(ALL_VARIANTS)


def test_a_loop_with_fewer_passes_still_passes():
    heard = []
    loop = fewer(lambda passes: heard.append(passes) or passes)
    assert loop(10 * FEWER) == 10 and loop(1) == 1


def test_a_process_of_the_stock_build_has_nothing_of_refbuf(run_python):
    run_python(
        """
        import os, sys
        there = sys.argv[1]
        sys.path.insert(0, os.path.dirname(there))
        from _extbench import program, workloads
        from _extbench.workloads import Use
        workloads.WORKLOADS["nothing"] = Use("", "shared", object)
        program.main("nothing", "2", "0.01", "/nowhere")
        assert "refbuf" not in sys.modules and sys.path[0] == "/nowhere"
        """,
        os.path.dirname(os.path.abspath(packages.__file__)),
    )
