"""`python -m refbuf lab simulate`: what is estimated is never asserted, but for what
follows from the schemes themselves; that it is reported is."""

import json
import sys
import time

import pytest
from refbuf._refbuf import HASHES, SCHEMES, Trace, calibrate_costs

from support import BUFFERED

ROW = {
    "scheme",
    "threads",
    "slots",
    "hash",
    "ns_per_pair",
    "pairs_per_second",
    "scaling",
    "misses_per_1000_pairs",
    "atomics_per_1000_pairs",
    "fills_per_1000_pairs",
    "hit_rate",
}
CHECK = {
    "scheme",
    "variant",
    "threads",
    "estimated_ns_per_pair",
    "measured_ns_per_pair",
    "error",
    "undisturbed",
}
META = {
    "costs",
    "given_costs",
    "assumptions",
    "cache_kib",
    "turn_ms",
    "work_ns",
    "recorded_threads",
    "command",
}


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Small traces, recorded once, by workload."""
    import subprocess

    folder = tmp_path_factory.mktemp("traces")

    def get(workload):
        file = folder / workload
        if not file.exists():
            command = [sys.executable, "-P", "-m", "refbuf", "lab", "trace", workload]
            subprocess.run([*command, "--out", file, "--pairs", "2000"], check=True, timeout=60)
        return file

    return get


@pytest.fixture
def simulate(run_process, tmp_path):
    def run(*arguments, **options):
        file = tmp_path / "simulation.json"
        command = [sys.executable, "-P", "-m", "refbuf", "lab", "simulate", *arguments, "--json", file]
        out = run_process(command, stderr=None, **options)
        return out, json.loads(file.read_text()) if file.exists() else None

    return run


def by_scheme(results, threads):
    return {row["scheme"]: row for row in results["rows"] if row["threads"] == threads}


def test_all_schemes_up_to_256_threads_take_seconds(simulate, traces):
    began = time.monotonic()
    out, results = simulate("--trace", traces("shared"), "--no-validate")
    assert time.monotonic() - began < 45, "a few seconds, on a machine with nothing else to do"
    threads = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert [(row["scheme"], row["threads"]) for row in results["rows"]] == [
        (scheme, count) for scheme in SCHEMES for count in threads
    ]
    assert all(set(row) == ROW for row in results["rows"] + results["tables"])
    assert set(results["meta"]) >= META and results["validation"] == []
    assert all(line in " ".join(out.split()) for line in results["meta"]["assumptions"])


def test_what_follows_from_the_schemes_for_one_shared_object(simulate, traces):
    # Given, not measured: other work may compete while tests run.
    costs = ("--cost", "transfer=60", "--cost", "hold=20", "--cost", "hold_looked=10", "--cost", "atomic=5")
    _, results = simulate("--trace", traces("shared"), "--threads", "2,64", "--no-validate", *costs)
    rows = by_scheme(results, 64)
    for scheme in ("atomic", "biased", "thread-count"):
        assert rows[scheme]["atomics_per_1000_pairs"] == pytest.approx(2_000, abs=1)
        assert rows[scheme]["misses_per_1000_pairs"] > 100
    for scheme in ("deltas", "credits"):
        assert rows[scheme]["atomics_per_1000_pairs"] < 5
        assert rows[scheme]["misses_per_1000_pairs"] < 5
        assert rows[scheme]["scaling"] == pytest.approx(64, rel=0.05)
        assert rows[scheme]["hit_rate"] > 0.99
    assert rows["plain"]["scaling"] == pytest.approx(1, rel=0.05)


def test_nested_calls_keep_a_thread_count_from_coming_back_to_zero_only_within(simulate, traces):
    _, results = simulate("--trace", traces("literals"), "--threads", "8", "--no-validate")
    rows = by_scheme(results, 8)
    # Each literal is taken once in a call and dropped once: the 2007 worst case.
    assert rows["thread-count"]["atomics_per_1000_pairs"] == pytest.approx(2_000, abs=1)
    assert rows["credits"]["atomics_per_1000_pairs"] < 50


def test_private_objects_are_the_owners_in_every_replica(simulate, traces):
    _, results = simulate("--trace", traces("private"), "--threads", "64", "--no-validate")
    for scheme in ("deltas", "biased", "credits"):
        row = by_scheme(results, 64)[scheme]
        assert row["atomics_per_1000_pairs"] == 0
        # Where one thread's 16 objects end and another's begin, a line may be both's.
        assert row["misses_per_1000_pairs"] <= 2 * 1000 / 16


def test_tables_are_reported_over_sizes_and_hashes(simulate, traces):
    arguments = ("--trace", traces("zipf"), "--threads", "2", "--schemes", "credits", "--no-validate")
    _, results = simulate(*arguments, "--slots", "2048,1024,16", "--hash", "shift,multiply")
    cells = [(row["scheme"], row["hash"], row["slots"]) for row in results["tables"]]
    assert cells == [
        ("deltas", name, size) for name in ("shift", "multiply") for size in (2048, 1024, 16)
    ] + [("credits", name, size) for name in ("shift", "multiply") for size in (1024, 16)]
    rates = {(row["scheme"], row["hash"], row["slots"]): row["hit_rate"] for row in results["tables"]}
    assert rates["credits", "multiply", 1024] > rates["credits", "multiply", 16] + 0.1
    # The curves have the first that credits can use.
    assert {(row["slots"], row["hash"]) for row in results["rows"]} == {(1024, "shift")}


def test_estimates_stand_beside_what_real_threads_measure(simulate, traces):
    out, results = simulate(
        "--trace", traces("shared"), "--threads", "1", "--schemes", "credits", timeout=120
    )
    assert all(set(check) == CHECK for check in results["validation"])
    schemes = {"biased": "stock", "credits": "refbuf"} if BUFFERED else {"plain": "stock"}
    assert {check["scheme"]: check["variant"] for check in results["validation"]} == schemes
    for check in results["validation"]:
        ratio = check["estimated_ns_per_pair"] / check["measured_ns_per_pair"]
        assert check["error"] == pytest.approx(ratio - 1, abs=0.01)
    assert "real threads" in out


def test_costs_may_be_given_and_are_said_to_be(simulate, traces):
    arguments = ("--trace", traces("shared"), "--threads", "1", "--schemes", "atomic", "--no-validate")
    costs = ("--cost", "atomic=1000", "--cost", "hit=0", "--work-ns", "500")
    out, results = simulate(*arguments, *costs)
    work = results["meta"]["work_ns"]
    assert work >= 500
    assert results["rows"][0]["ns_per_pair"] == pytest.approx(2_000 + work, rel=0.001)
    assert results["meta"]["given_costs"] == ["atomic", "hit"]
    assert "atomic 1,000.00 (given)" in out


def test_ranges_and_lists_of_threads(simulate, traces):
    arguments = ("--trace", traces("shared"), "--schemes", "atomic", "--no-validate", "--threads")
    for text, expected in (("1..16", [1, 2, 4, 8, 16]), ("3..9,2", [1, 2, 3, 4, 8, 9]), ("5", [1, 5])):
        _, results = simulate(*arguments, text)
        assert [row["threads"] for row in results["rows"]] == expected


def test_a_picture_is_drawn(simulate, traces, tmp_path):
    file = tmp_path / "curves.png"
    simulate("--trace", traces("shared"), "--threads", "1..4", "--no-validate", "--plot", file)
    assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--threads", "0"),
        ("--threads", "257"),
        ("--threads", "1..2..3"),
        ("--threads", "8..2"),
        ("--threads", "many"),
        ("--slots", "100"),
        ("--slots", "4096"),
        ("--slots", "2048"),
        ("--hash", "nonsense"),
        ("--schemes", "nonsense"),
        ("--pairs", "0"),
        ("--work-ns", "nan"),
        ("--cost", "nonsense=1"),
        ("--cost", "atomic"),
        ("--cost", "atomic=-1"),
        ("--plot", "x.gif"),
        ("--json", "/nonexistent/x"),
    ],
)
def test_bad_usage_is_status_2(run_process, traces, arguments):
    command = [
        sys.executable,
        "-P",
        "-m",
        "refbuf",
        "lab",
        "simulate",
        "--trace",
        traces("shared"),
        *arguments,
    ]
    run_process(command, returncode=2, stderr=None)


def test_what_is_no_trace_is_refused_in_one_sentence(run_process, traces, tmp_path):
    whole = traces("shared").read_bytes()
    for name, content in (("cut", whole[:-5]), ("text", b"hello"), ("empty", b"")):
        file = tmp_path / name
        file.write_bytes(content)
        command = [sys.executable, "-P", "-m", "refbuf", "lab", "simulate", "--trace", file]
        out = run_process(command, returncode=2, stderr=None)
        assert out == ""
    command = [sys.executable, "-P", "-m", "refbuf", "lab", "simulate", "--trace", tmp_path / "none"]
    run_process(command, returncode=2, stderr=None)


def test_the_native_part_checks_its_arguments(traces):
    trace = Trace(traces("shared").read_bytes())
    good = {
        "threads": 1,
        "slots": 1,
        "hash": HASHES[0],
        "pairs": 10,
        "costs": calibrate_costs(1)[0],
        "work_ns": 0.0,
        "cache_bytes": 1 << 16,
        "turn_ns": 5e6,
    }
    assert trace.simulate("atomic", **good)["residue"] == 0
    for bad in ({"threads": 0}, {"threads": 300}, {"slots": 3}, {"hash": "x"}, {"costs": {}}):
        with pytest.raises(ValueError, match=r"threads|slots|hash|cost"):
            trace.simulate("credits", **{**good, **bad})
    with pytest.raises(ValueError, match="unknown scheme"):
        trace.simulate("nonsense", **good)
