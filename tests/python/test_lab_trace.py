"""`python -m refbuf lab trace`: what is recorded is what the threads did."""

import gzip
import itertools
import sys

import pytest
from refbuf import workloads
from refbuf._refbuf import Trace, record_trace

from support import Plain, counts, settled_counts

KEYS = {"recorder", "command", "workload", "pairs", "seed", "python", "bare_ns_per_pair"}


@pytest.fixture
def lab(run_process):
    def run(*arguments, **options):
        return run_process([sys.executable, "-P", "-m", "refbuf", "lab", *arguments], **options)

    return run


def record(workload, objects, *, threads=2, pairs=1_000, room=1 << 20, **more):
    return record_trace(
        workload,
        objects,
        mapping=dict(enumerate(objects)) if workload == "container" else None,
        threads=threads,
        pairs=pairs,
        seed=3,
        factory=more.pop("factory", Plain),
        room=room,
        about=[("who", "a test")],
    )


@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_the_trace_has_what_the_run_reports(workload):
    objects = [Plain() for _ in range(50)]
    before = counts(objects)
    content, pairs = record(workload, objects, threads=3)
    trace = Trace(content)
    caller, *workers = trace.threads
    assert caller[1:4] == (0, 0, 0), "the caller counts nothing"
    assert len(workers) == len(pairs) == 3
    for (_, increments, decrements, lost, _), done in zip(workers, pairs, strict=True):
        assert lost == 0 and done >= 1_000
        if workload == "random":
            # A pair is any two operations; what is held in the end is dropped, too.
            assert increments == decrements and increments + decrements >= 2 * done
        else:
            assert increments == done
        if workload != "handoff":
            assert decrements == increments
    # What one thread made, the next has dropped.
    assert sum(worker[2] for worker in workers) == sum(worker[1] for worker in workers)
    assert settled_counts(objects) == before, "it was counted for real, too"


def test_who_made_the_objects_is_recorded():
    objects = [Plain() for _ in range(10)]
    shared = Trace(record("wide", objects)[0])
    assert shared.objects == 10
    assert [thread[4] for thread in shared.threads] == [10, 0, 0]
    private = Trace(record("private", objects)[0])
    assert [thread[4] for thread in private.threads] == [0, 10, 10]


def test_immortal_objects_are_recorded_as_such():
    objects = [None, True, Plain(), Plain()]
    trace = Trace(record("wide", objects)[0])
    # None and True are so from 3.12 on.
    assert trace.objects == 4 and trace.immortal == (2 if sys.version_info >= (3, 12) else 0)


@pytest.mark.parametrize("room", [0, 1, 999])
def test_a_recording_is_bounded_and_says_what_it_lost(room):
    content, pairs = record("zipf", [Plain() for _ in range(10)], room=room)
    for (_, increments, decrements, lost, _), done in zip(Trace(content).threads[1:], pairs, strict=True):
        assert increments + decrements == room
        assert lost == 2 * done - room


def test_what_the_factory_raises_comes_back():
    def fail():
        raise LookupError("no object")

    with pytest.raises(LookupError, match="no object"):
        record("private", [1], factory=fail)


def test_the_file_is_gzip_and_the_content_begins_as_documented():
    content, _ = record("shared", [Plain()])
    assert gzip.decompress(content).startswith(b"refbuf trace\n\x01")


def test_damaged_content_is_a_value_error():
    content, _ = record("shared", [Plain()])
    for at, cut in itertools.product(range(10, len(content), 7), (True, False)):
        damaged = content[:at] if cut else content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]
        with pytest.raises(ValueError, match="it"):
            Trace(damaged)


def test_the_command_writes_a_trace_and_says_what_is_in_it(lab, tmp_path):
    file = tmp_path / "zipf.trace"
    out = lab("trace", "zipf", "--out", file, "--threads", "3", "--pairs", "2000")
    trace = Trace(file.read_bytes())
    assert set(trace.about) == KEYS and trace.about["workload"] == "zipf"
    assert float(trace.about["bare_ns_per_pair"]) > 0
    assert [thread[1:4] for thread in trace.threads] == [(0, 0, 0)] + [(2_000, 2_000, 0)] * 3
    assert out.count("2,000 increments and 2,000 decrements") == 3
    assert f"{trace.objects:,} objects" in out


def test_a_limit_bounds_the_file(lab, tmp_path):
    file = tmp_path / "wide.trace"
    out = lab("trace", "random", "--out", file, "--pairs", "100000", "--limit", "500")
    assert file.stat().st_size < 10_000
    assert "lost (--limit)" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace",),
        ("trace", "zipf"),
        ("trace", "nonsense", "--out", "x"),
        ("trace", "zipf", "--out", "/nonexistent/x"),
        ("trace", "zipf", "--out", "x", "--threads", "0"),
        ("trace", "zipf", "--out", "x", "--threads", "257"),
        ("trace", "zipf", "--out", "x", "--pairs", "many"),
        ("trace", "zipf", "--out", "x", "--limit", "-1"),
        ("trace", "zipf", "--out", "x", "--seed", "-1"),
        ("nonsense",),
        (),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(lab, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab(*arguments, returncode=2, stderr=None)
    assert list(tmp_path.iterdir()) == []


def test_help_names_the_subcommands(lab):
    out = lab("--help")
    assert "trace" in out and "simulate" in out
