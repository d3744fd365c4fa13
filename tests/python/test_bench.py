"""`python -m refbuf bench` and the workloads' other work. What is measured is never
asserted; that it is measured and written is."""

import json
import platform
import re
import shutil
import sys

import pytest
import refbuf
from refbuf import workloads
from refbuf._refbuf import work_iteration_ns

from support import BUFFERED, Plain, counts, settled_counts

ROW = {"workload", "variant", "threads", "ns_per_pair", "scaling", "atomics_per_1000_pairs"}
SHORT = ("--rounds", "1", "--seconds", "0.02")


@pytest.fixture
def bench(run_process, tmp_path):
    def run(*arguments, **options):
        file = tmp_path / "bench.json"
        command = [sys.executable, "-P", "-m", "refbuf", "bench", *arguments, "--json", file]
        out = run_process(command, stderr=None, **options)
        return out, json.loads(file.read_text()) if file.exists() else None

    return run


def test_every_usual_variant_has_its_rows(bench):
    out, results = bench("--workloads", "shared,private", "--threads", "2", *SHORT)
    usual = workloads.VARIANTS if BUFFERED else ("stock", "detached", "attach-per-clone", "arc", "pool")
    cells = [(row["workload"], row["threads"], row["variant"]) for row in results["rows"]]
    assert cells == [(name, n, v) for name in ("shared", "private") for n in (1, 2) for v in usual]
    assert all(set(row) == ROW and row["ns_per_pair"] > 0 for row in results["rows"])
    assert all(variant in out for variant in usual)
    assert ("take turns" in out) == (not BUFFERED)


def test_other_work_is_part_of_the_figures_and_said(bench):
    arguments = ("--workloads", "shared", "--variants", "detached", "--threads", "1", *SHORT)
    out, results = bench(*arguments, "--work-ns", "20000")
    assert "20000 ns of other work" in out
    assert results["meta"]["work_ns"] == 20_000 and results["meta"]["work_iteration_ns"] > 0
    # Each pair does it: no machine does a pair with 20 us of work in 1 us.
    assert all(row["ns_per_pair"] > 1_000 for row in results["rows"])


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "much", "2e6"])
def test_nonsense_for_other_work_is_bad_usage(bench, value):
    bench("--work-ns", value, returncode=2)


def test_an_iteration_of_other_work_is_measured_once():
    assert work_iteration_ns() == work_iteration_ns() > 0


@pytest.mark.parametrize("variant", workloads.VARIANTS)
@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_counts_are_exact_with_other_work_beside(workload, variant):
    objects = [Plain() for _ in range(100)]
    before = counts(objects)
    run = workloads.run(workload, variant, objects, threads=3, pairs=500, work_ns=10)
    assert run.pairs >= 1_500
    assert settled_counts(objects) == before


@pytest.mark.parametrize("variant", workloads.VARIANTS)
def test_what_random_keeps_is_the_callers(variant):
    objects = [Plain() for _ in range(100)]
    before = counts(objects)
    run = workloads.run("random", variant, objects, threads=2, pairs=1_000, keep=True, work_ns=1)
    assert set(map(id, run.kept)) <= set(map(id, objects)) and run.kept
    del run
    assert settled_counts(objects) == before


@pytest.mark.parametrize("workload", ["shared", "zipf", "wide", "private", "container"])
def test_a_stock_pair_writes_to_the_object_twice(workload, run_process):
    """A compiler that sees an increment and its decrement side by side may leave neither:
    then the baseline of every figure counts nothing."""
    if sys.platform != "linux" or shutil.which("objdump") is None or platform.machine() != "x86_64":
        pytest.skip("reads x86-64 machine code with objdump")
    code = run_process(["objdump", "-d", "--no-show-raw-insn", refbuf._refbuf.__file__], timeout=120)
    body = code.split(f"<stock_{workload}>:\n")[1].split("\n\n")[0]
    # To memory at a register, without an offset or with that of a count's field.
    writes = re.findall(r"\b(?:add|sub|inc|dec)[lq]? +(?:\$0x\w+,)?(?:0x0)?\(%\w+\)", body)
    writes += re.findall(r"\bmov[lq]? +%\w+,(?:0x0)?\(%(?!r[sb]p)\w+\)", body)
    writes += re.findall(r"\block\b", body) + re.findall(r"call .*_Py_DecRefShared", body)
    assert len(writes) >= 2, body
