"""`python -m refbuf lab run` and `lab report`: that all is measured, said and written; what
follows from the schemes themselves; no figure that depends on time."""

import json
import sys

import pytest
from refbuf._lab import measure
from refbuf._lab.claims import Figures, claims
from refbuf._lab.document import document
from refbuf._lab.measure import Matrix, Reclaim, Results, Row
from refbuf._lab.report import delays
from refbuf._refbuf import PROGRAMS, SCHEMES, calibrate_program, reclaim_delays, run_program

SHORT = ("--rounds", "1", "--seconds", "0.01")
ROW = set(Row._fields)
USUAL = {"share": 0.5, "made_by_worker": True, "seed": 1, "heartbeat_ms": 2.0, "slots": 1024}


@pytest.fixture
def lab(run_process, tmp_path):
    def run(*arguments, **options):
        options.setdefault("stderr", None)
        out = run_process([sys.executable, "-P", "-m", "refbuf", "lab", *arguments], cwd=tmp_path, **options)
        file = tmp_path / "lab.json"
        return out, json.loads(file.read_text()) if file.exists() else None

    return run


def test_every_scheme_and_program_has_its_rows(lab):
    out, results = lab("run", "--threads", "2", *SHORT, "--json", "lab.json", "--plot", "lab.png")
    cells = [(row["workload"], row["threads"], row["scheme"]) for row in results["rows"]]
    assert cells == [(name, n, s) for name in PROGRAMS for n in (1, 2) for s in SCHEMES]
    assert all(set(row) == ROW and row["ns_per_pair"] > 0 for row in results["rows"])
    assert all(row["speed"] == 1 for row in results["rows"] if row["scheme"] == "plain")
    assert set(results["reclaim"]) == set(SCHEMES)
    assert set(results["meta"]["calibrations"]) == set(PROGRAMS)
    assert not results["reclaim"]["deltas"]["reclaimed"] and "never, until collected" in out
    assert results["reclaim"]["credits"]["p99_ms"] > 0
    assert all(name in out for name in (*PROGRAMS, *SCHEMES))


def test_plain_and_one_thread_are_measured_to_compare_with(lab):
    arguments = ("--scheme", "credits", "--workload", "private", "--threads", "2", *SHORT)
    _, results = lab("run", *arguments, "--json", "lab.json")
    assert [(row["threads"], row["scheme"]) for row in results["rows"]] == [
        (1, "plain"),
        (1, "credits"),
        (2, "plain"),
        (2, "credits"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scheme", "gil"),
        ("--workload", "shared"),
        ("--threads", "0"),
        ("--threads", "1025"),
        ("--shared", "1.5"),
        ("--made-by", "nobody"),
        ("--counting-share", "0"),
        ("--heartbeat", "nan"),
        ("--rounds", "0"),
        ("--seconds", "-1"),
        ("--plot", "lab.txt"),
        ("--json", "nowhere/lab.json"),
    ],
)
def test_nonsense_is_one_sentence(lab, run_process, tmp_path, arguments):
    lab("run", *arguments, returncode=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workload", PROGRAMS)
def test_atomic_counts_each_pair_twice(workload):
    for seconds in 0.02, 0.2, 2.0:
        run = run_program("atomic", workload, threads=2, seconds=seconds, work=0, **USUAL)
        if run["pairs"] > 100_000:  # or a busy machine has given it no more than a moment
            break
    # A cell that is made and freed has no increment; a thread may end within a pair.
    least, most = (1_400, 2_050) if workload in ("pipeline", "churn", "graph") else (1_990, 2_010)
    # And each cell is dropped in the end.
    assert least <= run["atomics_per_1000_pairs"] <= most + 1000 * run["most_cells"] / run["pairs"]


@pytest.mark.parametrize("scheme", ["plain", "thread-count", "deltas", "biased", "credits"])
def test_nothing_but_atomic_needs_atomics_for_a_threads_own_cells(scheme):
    run = run_program(scheme, "private", threads=2, seconds=0.05, work=0, **USUAL)
    assert run["atomics_per_1000_pairs"] < 1


@pytest.mark.parametrize("scheme", ["plain", "biased", "credits"])
def test_a_cell_that_no_other_thread_has_seen_dies_without_atomics(scheme):
    run = run_program(scheme, "churn", threads=2, seconds=0.05, work=0, **USUAL)
    assert run["atomics_per_1000_pairs"] < 1


def test_literals_of_another_thread_cost_thread_counts_two_atomics_and_credits_hardly_any():
    foreign = USUAL | {"share": 1.0, "made_by_worker": False}
    tulloss, credits = (
        run_program(scheme, "calls", threads=2, seconds=0.1, work=0, **foreign)
        for scheme in ("thread-count", "credits")
    )
    # Nested calls use a literal again before they have dropped it, now and then.
    assert tulloss["atomics_per_1000_pairs"] > 1_000
    assert credits["atomics_per_1000_pairs"] < 200


def test_work_beside_a_pair_takes_time():
    idle, busy = (
        run_program("plain", "private", threads=1, seconds=0.02, work=work, **USUAL) for work in (0, 5_000)
    )
    assert busy["pairs"] < idle["pairs"] / 10


def test_more_work_is_found_for_a_smaller_part_of_counting():
    parts = [calibrate_program("calls", share=0.5, target=target, seed=0) for target in (0.2, 0.01)]
    assert parts[1]["work"] > parts[0]["work"]
    assert parts[1]["pair_ns"] > parts[1]["counting_ns"] > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_cell_dies_promptly_but_with_deltas(scheme):
    delays = reclaim_delays(scheme, samples=8, heartbeat_ms=4, slots=1024)
    assert delays
    assert all((delay is None) == (scheme == "deltas") for delay in delays), delays


@pytest.mark.parametrize(
    "changed",
    [{"share": 2.0}, {"heartbeat_ms": 0.0}, {"slots": 3}, {"slots": 2048}, {"seconds": 0.0}, {"threads": 0}],
)
def test_nonsense_is_a_value_error(changed):
    arguments = {"threads": 1, "seconds": 0.01, "work": 0} | USUAL | changed
    with pytest.raises(ValueError, match=next(iter(changed))):
        run_program("plain", "private", **arguments)
    with pytest.raises(ValueError, match="unknown scheme"):
        reclaim_delays("gil", samples=1, heartbeat_ms=1, slots=16)


@pytest.mark.parametrize(
    ("made_by", "by_worker"),
    [("main", {1: True, 2: False}), ("worker", {1: True, 2: True}), ("waiter", {1: False, 2: False})],
)
def test_what_threads_share_is_made_by_whom_it_says(monkeypatch, made_by, by_worker):
    seen = {}

    def look(scheme, workload, **options):
        seen[options["threads"]] = options["made_by_worker"]
        return run_program(scheme, workload, **options)

    monkeypatch.setattr(measure, "run_program", look)
    matrix = Matrix(("plain",), ("private",), (1, 2), 1, 0.001, made_by=made_by, samples=2)
    measure.measure(matrix, lambda _: None)
    assert seen == by_worker


@pytest.mark.parametrize("scheme", SCHEMES)
def test_more_threads_than_the_system_allows_is_a_runtime_error(run_python, scheme):
    run_python(
        f"""
        import os, resource, time
        from refbuf._refbuf import PROGRAMS, reclaim_delays, run_program

        USUAL = {USUAL | {"seconds": 0.01, "work": 0}}
        if os.getuid() == 0:
            os.setuid(65534)  # the limit is not for root
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)

        def threads():
            return len(os.listdir("/proc/self/task"))

        before = threads()

        def allow(more):
            while threads() > before:  # A joined thread counts until the system is done with it.
                time.sleep(0.001)
            resource.setrlimit(resource.RLIMIT_NPROC, (before + more, hard))

        for workload in PROGRAMS:
            for few in 0, 3:
                allow(few)
                try:
                    run_program({scheme!r}, workload, threads=16, **USUAL)
                except RuntimeError as error:
                    assert "of 16 threads" in str(error), error
                else:
                    raise AssertionError("all threads were there")
        allow(1)
        try:
            reclaim_delays({scheme!r}, samples=1, heartbeat_ms=1, slots=16)
        except RuntimeError:
            pass
        else:
            raise AssertionError("both threads were there")
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        run_program({scheme!r}, "calls", threads=4, **USUAL)
        """
    )


def test_the_report_writes_a_page_and_its_pictures(lab, tmp_path):
    kept = "<!-- From here on: not by `lab report`. -->\n\nMore.\n"
    (tmp_path / "LAB.md").write_text(f"The one before.\n{kept}")
    out, _ = lab("report", "--out", ".", *SHORT, timeout=120)
    page = (tmp_path / "LAB.md").read_text()
    assert page.endswith("\n\n" + kept) and "The one before" not in page
    for name in ("lab.png", "lab-literals.png", "lab-zipf.png"):
        assert f"]({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "Atomic counts cost about 12 %" in page and "256 threads" in page
    # Why it is as it is, where that needs a word.
    assert "A pair of atomic instructions adds" in page and "With one thread the shared literals" in page
    assert "Atomic counts cost" in out


def test_the_report_wants_a_folder(lab, tmp_path):
    lab("report", "--out", "nowhere", returncode=2)
    assert not list(tmp_path.iterdir())


def results(**changed):
    """Figures as they might have been measured; by (scheme, threads) what is different."""
    usual = {
        "plain": 1.0,
        "atomic": 0.88,
        "thread-count": 0.8,
        "deltas": 0.5,
        "biased": 0.99,
        "credits": 0.98,
    }
    rows = []
    for workload in PROGRAMS:
        for scheme, speed in usual.items():
            for threads in (1, 2):
                contended = {"plain": 0.5, "atomic": 1.9 if workload == "private" else 0.3}
                scaling = contended.get(scheme, 1.95) if threads == 2 else 1.0
                row = Row(
                    workload, scheme, threads, 10 / speed, speed, speed * scaling, scaling, 1500.0, 8, 0, 1
                )
                rows.append(row._replace(**changed.get(f"{scheme}_{threads}", {})))
    reclaim = {scheme: Reclaim(scheme != "deltas", 10.0, 15.0, 9) for scheme in SCHEMES}
    reclaim["deltas"] = Reclaim(False, None, None, 5)
    reclaim |= {name: found for name, found in changed.items() if name in SCHEMES}
    work = {
        "work": 5,
        "unit_ns": 1.0,
        "pair_ns": 10.0,
        "counting_ns": 0.5,
        "beside_work_ns": 0.3,
        "share": 0.05,
    }
    return Results(rows, reclaim, dict.fromkeys(PROGRAMS, work))


def test_claims_that_hold_are_said_to_hold():
    found = claims(Figures(results(), results()))
    assert [claim.said for claim in found if not claim.holds] == []


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"atomic_1": {"speed": 0.5}}, "Atomic counts cost about 12 %"),
        ({"atomic_2": {"scaling": 1.9}}, "With two threads they cost far more"),
        ({"thread-count_2": {"throughput": 3.0}}, "Thread counts touch"),
        ({"deltas_1": {"speed": 0.95}}, "Buffered deltas give about 50 %"),
        ({"deltas_1": {"speed": 0.2}}, "Buffered deltas give about 50 %"),
        ({"deltas_2": {"scaling": 1.5}}, "Their scalability"),
        ({"credits_1": {"speed": 0.96}}, "Credits keep at least"),
        ({"credits_2": {"scaling": 1.8}}, "Two threads do at least"),
        ({"credits": Reclaim(True, 10.0, 25.0, 9)}, "An object is freed within"),
        ({"credits": Reclaim(True, 10.0, None, 9)}, "An object is freed within"),
        ({"deltas": Reclaim(True, 10.0, 15.0, 9)}, "An asynchronous object is freed"),
    ],
)
def test_claims_that_do_not_hold_are_said_not_to(changed, lost):
    found = claims(Figures(results(**changed), results(**changed)))
    assert any(claim.said.startswith(lost) and not claim.holds for claim in found)
    page = document(Figures(results(**changed), results()), found, meta(), [])
    assert "**no**" in page


@pytest.mark.parametrize(
    ("found", "sums", "words"),
    [
        ([None] * 5, (False, None, None), ("never, until collected", "")),
        ([2_000_000] * 99 + [None], (True, 2.0, 2.0), ("2 ms", "2 ms")),
        ([2_000_000] * 98 + [None] * 2, (True, 2.0, None), ("2 ms", "over five beats")),
        ([2_000_000] + [None] * 5, (True, None, None), ("over five beats", "over five beats")),
    ],
)
def test_one_cell_that_ends_late_is_not_said_never_to_end(monkeypatch, found, sums, words):
    monkeypatch.setattr(measure, "reclaim_delays", lambda *_, **__: found)
    matrix = Matrix(tuple(SCHEMES), tuple(PROGRAMS), (1, 2), 1, 0.1)
    summed = measure._reclaim(matrix, "credits")
    assert summed == Reclaim(*sums, len(found))
    assert delays(summed) == words


def test_a_ratio_is_that_of_the_rounds_own():
    """A round in which the machine was slow counts as any other."""

    def runs(*speeds):
        usual = {"atomics_per_1000_pairs": 0, "header_bytes": 8, "thread_bytes": 0, "most_cells": 1}
        return [usual | {"pairs_per_second": speed, "ns_per_pair": 1 / speed} for speed in speeds]

    samples = {
        measure.Cell("calls", 1, "plain"): runs(1, 2, 9),
        measure.Cell("calls", 1, "atomic"): runs(2, 4, 3),
        measure.Cell("calls", 2, "atomic"): runs(8, 4, 1),
    }
    _, alone, both = measure._rows(samples)
    # The ratios of medians would be 1.5, 2 and 1.3.
    assert (alone.speed, both.throughput, both.scaling) == (2, 2, 1)


def meta():
    matrix = Matrix(tuple(SCHEMES), tuple(PROGRAMS), (1, 2), 1, 0.1)
    about = {"command": "lab report", "date": "today", "cpu": "a CPU", "cpus": 2, "version": "0"}
    return matrix._asdict() | about | {"elapsed": 1.0, "calibrations": results().calibrations}
