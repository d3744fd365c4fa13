"""`python -m refbuf bench --python`: that each workload does what it says, in both variants;
what is asked for, said and written; the arithmetic. What is measured is never asserted."""

import contextlib
import dis
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import refbuf
from refbuf._bench.measure import Cell, Matrix
from refbuf._pybench import measure, report
from refbuf._pybench.measure import VARIANTS, ChildError, Results, rows, summarize, turns
from refbuf._pybench.runner import Answer
from refbuf._pybench.workloads import UNROLLED, WORKLOADS

OBSTACLE = refbuf._refbuf.live_obstacle()
LIVE = OBSTACLE is None
live = pytest.mark.skipif(not LIVE, reason="live mode is for free-threaded builds on x86-64 Linux")

ROW = {"workload", "variant", "threads", "ns_per_pair", "scaling", "atomics_per_1000_pairs"}
SHORT = ("--rounds", "1", "--seconds", "0.02")
COMMAND = (sys.executable, "-P", "-m", "refbuf", "bench", "--python")
CELL = Cell("attribute", 1, "stock")


@pytest.fixture
def bench(run_process, tmp_path):
    def run(*arguments, **options):
        file = tmp_path / "bench.json"
        options.setdefault("stderr", None)
        out = run_process([*COMMAND, *arguments, "--json", file], cwd=tmp_path, **options)
        return out, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.fixture
def fails(run_process, tmp_path):
    """Runs the command, which must end with this one sentence, and write nothing."""

    def run(sentence, *arguments):
        command = [*COMMAND, *arguments, "--json", "bench.json"]
        run_process(command, cwd=tmp_path, returncode=2, stderr=f"refbuf: bench: {sentence}\n")
        assert not list(tmp_path.iterdir())

    return run


def answer(per_second, *, atomics=None, **fields):
    """What a process could have told."""
    usual = {
        "operations": 1000,
        "cpu_share": 1.0,
        "install_seconds": None if atomics is None else 0.05,
        "sites": None if atomics is None else 1800,
        "gil_enabled": False,
    }
    return Answer(per_second=per_second, atomics=atomics, **{**usual, **fields})


def samples(throughputs):
    """From (stock, live) with one thread, then with two, for each workload."""
    return {
        Cell(workload, threads, variant): [answer(per_second, atomics=None if variant == "stock" else 5)]
        for workload, pairs in throughputs.items()
        for threads, pair in zip((1, 2), pairs, strict=False)
        for variant, per_second in zip(VARIANTS, pair, strict=True)
    }


def results(throughputs):
    made = rows(samples(throughputs))
    return Results(made, rounds=1, cpu_share=1.0, gil_enabled=False, install_ms=50.0, sites=1800)


# -- the workloads ------------------------------------------------------------


@pytest.mark.parametrize("name", WORKLOADS)
def test_an_operation_does_what_it_should(name):
    workload = WORKLOADS[name]
    assert eval(workload.operation, {"shared": workload.make()})


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_loop_does_as_many_operations_as_it_says(name):
    workload = WORKLOADS[name]
    loop = workload.loop(workload.make())
    assert loop(3) == 3 * UNROLLED
    loads = [operand for operand in _loads(loop) if operand == "shared"]
    assert len(loads) == UNROLLED * workload.operation.count("shared")


def _loads(function):
    """The operands of all loads, which may share an instruction with what comes before them."""
    for instruction in dis.get_instructions(function):
        if "LOAD" in instruction.opname:
            operands = instruction.argval
            yield from operands if isinstance(operands, tuple) else (operands,)


def test_a_process_that_measures_stock_has_nothing_of_refbuf(run_python):
    run_python(
        """
        import runpy, sys
        sys.argv[:] = [sys.argv[1], "attribute", "2", "0.01"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        assert not [name for name in sys.modules if "refbuf" in name]
        """,
        measure.RUNNER,
    )


# -- the command --------------------------------------------------------------


@live
def test_every_workload_has_its_rows_in_both_variants(bench):
    out, found = bench("--threads", "1", *SHORT)
    cells = [(row["workload"], row["threads"], row["variant"]) for row in found["rows"]]
    assert cells == [(name, 1, variant) for name in WORKLOADS for variant in VARIANTS]
    assert all(set(row) == ROW and row["ns_per_pair"] > 0 and row["scaling"] == 1 for row in found["rows"])
    counted = {row["variant"]: row["atomics_per_1000_pairs"] is not None for row in found["rows"]}
    assert counted == {"stock": False, "live": True}
    assert all(name in out for name in WORKLOADS)


@live
def test_what_is_told_about_the_runs(bench, tmp_path):
    chosen = ("--workloads", "method,attribute", "--threads", "2")
    out, found = bench(*chosen, *SHORT, "--plot", tmp_path / "bench.png")
    assert [(row["workload"], row["threads"]) for row in found["rows"]] == [
        (name, threads) for name in ("attribute", "method") for threads in (1, 1, 2, 2)
    ]
    meta = found["meta"]
    assert "measured too, for comparison: 1 thread" in " ".join(out.split())
    assert meta["rounds"] == 1 and meta["seconds"] == 0.02 and not meta["gil_enabled"]
    assert meta["operations"] == {"attribute": "shared.value", "method": "shared()"}
    assert meta["command"].startswith("python -m refbuf bench --python --workloads method,attribute")
    assert meta["sites"] > 1000 and meta["summary"]["install_ms"] > 0
    assert meta["summary"]["lowest_workload"] in ("attribute", "method")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


@live
def test_children_do_not_hear_of_python_gil(monkeypatch):
    monkeypatch.setenv("PYTHON_GIL", "1")
    for variant in VARIANTS:
        assert not measure.run(CELL._replace(variant=variant), 0.01).gil_enabled


def test_help_of_bench_names_it(run_process):
    out = run_process([sys.executable, "-P", "-m", "refbuf", "bench", "--help"])
    assert "--python" in out
    out = run_process([*COMMAND, "--help"])
    assert "live" in out and "--variants" not in out


# -- errors -------------------------------------------------------------------


@pytest.mark.skipif(LIVE, reason="live mode is possible here")
def test_where_live_mode_is_not_possible_nothing_is_measured(fails):
    fails(f"--python: {OBSTACLE}")


@pytest.mark.parametrize(("option", "value"), [("--variants", "stock"), ("--work-ns", "0")])
def test_options_of_the_other_benchmark_are_refused(fails, option, value):
    fails(f"{option} is not for --python, which measures stock and live", option, value)


def test_other_bad_usage_is_one_sentence(fails):
    fails(f"unknown workload 'shared': there are {', '.join(WORKLOADS)}", "--workloads", "shared")
    fails(
        "--threads takes whole numbers from 1 to 4096 with commas between, not '0'",
        "--threads",
        "0",
    )
    fails("argument --rounds: must be from 1 to 1000, not 0", "--rounds", "0")


@live
def test_runs_too_short_to_do_anything_are_an_error(run_process):
    command = [*COMMAND, "--workloads", "lock", "--threads", "1", "--rounds", "1", "--seconds", "1e-6"]
    sentence = "lock, 1 thread, stock: did nothing in 1e-06 seconds: give more with --seconds"
    run_process(command, returncode=2, stderr=f"round 1 of 1\nrefbuf: bench: {sentence}\n")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('no such thing')", "ended with status 1: ValueError: no such thing"),
        ("import sys; sys.exit(3)", "ended with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was ended by signal 9 (Killed)"),
        ("print('hello')", "printed 'hello\\n', which is no answer"),
        ("print('{}')", "printed '{}\\n', which is no answer"),
        (f"import json; print(json.dumps({answer(1.0, atomics=1)._asdict()}))", "live mode was on"),
    ],
)
def test_a_process_that_fails_is_told_of(monkeypatch, tmp_path, code, why):
    program = tmp_path / "program.py"
    program.write_text(code)
    monkeypatch.setattr(measure, "RUNNER", str(program))
    with pytest.raises(ChildError) as caught:
        measure.run(CELL, 0.01)
    assert str(caught.value) == f"attribute, 1 thread, stock: {why}"


def test_a_process_that_hangs_is_ended(monkeypatch, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import time; time.sleep(1000)")
    monkeypatch.setattr(measure, "RUNNER", str(program))
    monkeypatch.setattr(measure, "_PATIENCE", 0.2)
    with pytest.raises(ChildError, match=r"did not end within 0\.22 seconds"):
        measure.run(CELL, 0.01)


def test_a_thread_that_fails_ends_the_others(run_python):
    out = run_python(
        """
        from threading import current_thread
        from refbuf._pybench.runner import run

        def loop(passes):
            return passes // ("Thread-2 " not in current_thread().name)

        try:
            run(loop, 3, 1)
        except ZeroDivisionError:
            print("failed")
        """
    )
    assert out == "failed\n"


@live
def test_an_interrupt_leaves_no_process_behind(environment):
    command = [*COMMAND, "--workloads", "lock", "--threads", "2", "--rounds", "1", "--seconds", "60"]
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stderr.readline() == "round 1 of 1\n"
        time.sleep(0.3)  # into the first run, but any moment will do
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130 and err == "refbuf: interrupted\n"
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# -- order and arithmetic -------------------------------------------------------


def test_who_is_first_alternates_over_the_rounds():
    matrix = Matrix(workloads=("global", "lock"), threads=(1, 2), variants=VARIANTS, rounds=3)
    for number, first, second in [(0, "stock", "live"), (1, "live", "stock"), (2, "stock", "live")]:
        order = list(turns(matrix, number))
        assert [cell.variant for cell in order] == [first, second] * 4
        places = [(cell.workload, cell.threads) for cell in order]
        assert places[::2] == places[1::2] == [("global", 1), ("global", 2), ("lock", 1), ("lock", 2)]


def test_results_are_medians_of_what_the_processes_told(monkeypatch):
    told = {"stock": iter([10.0, 30.0, 20.0]), "live": iter([40.0, 90.0, 60.0])}
    heard = []

    def run(cell, seconds):
        assert seconds == 0.5
        atomics = None if cell.variant == "stock" else 7
        return answer(next(told[cell.variant]), atomics=atomics, cpu_share=0.75)

    monkeypatch.setattr(measure, "run", run)
    matrix = Matrix(workloads=("lock",), threads=(1,), variants=VARIANTS, rounds=3)
    found = measure.measure(matrix, 0.5, 2, lambda number, cell: heard.append((number, cell.variant)))
    assert heard == [(0, "stock"), (0, "live"), (1, "live"), (1, "stock"), (2, "stock"), (2, "live")]
    stock, live = found.rows
    assert (stock.pairs_per_second, stock.ns_per_pair, stock.to_stock) == (20.0, 5e7, 1.0)
    assert (live.pairs_per_second, live.to_stock, live.atomics_per_1000_pairs) == (60.0, 3.0, 7.0)
    assert stock.atomics_per_1000_pairs is None
    assert (found.rounds, found.cpu_share, found.sites) == (3, 0.75, 1800)
    assert found.install_ms == pytest.approx(50)
    assert not found.lulls


def test_that_one_thread_ran_in_a_lull_is_said():
    meta = {"cpus": 2, "load_average": None, "seconds": 1.0, "rounds": 1, "processor_shared": False}
    matrix = Matrix(workloads=("lock",), threads=(1, 2), variants=VARIANTS, rounds=1)
    plain = results({"lock": [(10.0, 10.0), (8.0, 18.0)]})
    with_lulls, without = (
        report.notes(meta, matrix, plain._replace(lulls=lulls), []) for lulls in (True, False)
    )
    (note,) = set(with_lulls) - set(without)
    assert "REFBUF_LULLS=0" in note


def test_no_round_is_started_that_would_end_too_late(monkeypatch):
    def run(cell, seconds):
        time.sleep(0.05)
        return answer(1.0, atomics=None if cell.variant == "stock" else 7)

    monkeypatch.setattr(measure, "run", run)
    matrix = Matrix(workloads=("lock",), threads=(1,), variants=VARIANTS, rounds=3)
    assert measure.measure(matrix, 0.5, 2, lambda *_: None, time_limit=0.01).rounds == 1


def test_scaling_and_ratios():
    found = rows(samples({"lock": [(10.0, 8.0), (12.0, 16.0)]}))
    assert [(row.threads, row.variant) for row in found] == [(n, v) for n in (1, 2) for v in VARIANTS]
    assert [row.scaling for row in found] == [1, 1, 1.2, 2]
    assert [row.to_stock for row in found] == [1, 0.8, 1, pytest.approx(4 / 3)]
    assert found[2].ns_per_pair == pytest.approx(2e9 / 12)


def test_the_summary_is_of_contended_workloads():
    figures = summarize(
        results(
            {
                "global": [(10.0, 8.0), (5.0, 16.0)],  # 0.5 -> 2
                "lock": [(10.0, 5.0), (8.0, 5.0)],  # 0.8 -> 1
                "regex": [(10.0, 16.0), (18.0, 9.0)],  # 1.8: does not contend
            }
        ),
        cpus=2,
    )
    assert figures.threads == 2 and figures.contended == ("global", "lock")
    assert figures.contended_scaling == pytest.approx((2 * 1) ** (1 / 2))
    assert figures.contended_scaling_stock == pytest.approx((0.5 * 0.8) ** (1 / 2))
    assert figures.alone == pytest.approx((0.8 * 0.5 * 1.6) ** (1 / 3))
    assert (figures.lowest, figures.lowest_workload, figures.lowest_threads) == (0.5, "lock", 1)
    assert (figures.lowest_alone, figures.lowest_alone_workload) == (0.5, "lock")
    assert figures.install_ms == 50
    first, second, *_ = report.summary(figures, 1800)
    assert "0.86" in first and "(2 workloads): live scales to 1.41, stock to 0.63" in second


def test_the_summary_without_anything_contended_or_without_a_second_cpu():
    figures = summarize(results({"regex": [(10.0, 10.0), (18.0, 9.0)]}), cpus=2)
    assert (figures.threads, figures.contended, figures.contended_scaling) == (2, (), None)
    assert (figures.lowest, figures.lowest_threads, figures.lowest_alone) == (0.5, 2, 1)
    assert any("no workload" in line for line in report.summary(figures, 1800))
    figures = summarize(results({"lock": [(10.0, 5.0), (8.0, 5.0)]}), cpus=1)
    assert (figures.threads, figures.contended, figures.contended_scaling_stock) == (None, (), None)
    assert len(report.summary(figures, 1800)) == 3


def test_the_time_of_a_run_follows_from_the_budget():
    matrix = Matrix(workloads=("lock",) * 10, threads=(1, 2), variants=VARIANTS, rounds=3)
    assert measure.run_seconds(matrix, 1000, 0.5) == 0.5
    assert measure.run_seconds(matrix, 1, 0.5) == 0.02
    between = measure.run_seconds(matrix, 40, 0.5)
    assert 0.02 < between < 40 / matrix.runs
