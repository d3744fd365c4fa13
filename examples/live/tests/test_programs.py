"""Each program comes to the same result stock and live, with one thread and with two."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).resolve().parent.parent
LIBRARIES = {
    "request_container": "modern_di",
    "tariff_index": "sortedcontainers",
    "order_histories": "automata",
}


def obstacle_to_live():
    if importlib.util.find_spec("refbuf") is None:
        return "refbuf is not installed"
    import refbuf

    return refbuf._refbuf.live_obstacle()


OBSTACLE = obstacle_to_live()
live = pytest.mark.skipif(OBSTACLE is not None, reason=f"no live mode here: {OBSTACLE}")


@pytest.fixture(params=LIBRARIES)
def program(request):
    if importlib.util.find_spec(LIBRARIES[request.param]) is None:
        pytest.skip(
            f"{LIBRARIES[request.param]} is not installed: pip install -r examples/live/requirements.txt"
        )
    return request.param


def run(*command):
    """Runs a command, which must end in time, well, and without a word on standard error."""
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def result_of(program, *before, threads, seconds):
    arguments = ["--threads", threads, "--seconds", seconds, "--json"]
    result = json.loads(run(*before, PROGRAMS / f"{program}.py", *arguments))
    assert (result["program"], result["threads"]) == (program, threads)
    assert result["operations_per_second"] == result["operations"] / result["seconds"]
    return result


def test_the_number_of_threads_does_not_matter(program):
    one, two = (result_of(program, threads=threads, seconds=0) for threads in (1, 2))
    assert one["check"] == two["check"]
    # Without any time, each thread does everything once.
    assert two["operations"] == 2 * one["operations"] > 0


@live
@pytest.mark.parametrize("threads", [1, 2])
def test_live_comes_to_the_same(program, threads):
    stock = result_of(program, threads=threads, seconds=0)
    live = result_of(program, "-m", "refbuf", "run", threads=threads, seconds=0.2)
    assert live["check"] == stock["check"]


def test_people_get_one_line(program):
    line = run(PROGRAMS / f"{program}.py", "--threads", 1, "--seconds", 0)
    assert line.count("\n") == 1
    assert line.endswith(
        f" a second, threads: 1, check: {result_of(program, threads=1, seconds=0)['check']}\n"
    )


@live
def test_compare_measures_both_ways(program, tmp_path):
    figures = tmp_path / "figures.json"
    options = ["--rounds", 1, "--seconds", 0.05, "--tries", 1, "--json", figures]
    done = subprocess.run(
        [sys.executable, PROGRAMS / "compare.py", program, *map(str, options)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "round 1 of 1\n")
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:]] == [[program, "1"], [program, "2"]]
    runs = json.loads(figures.read_text())["runs"]
    assert sorted((run["threads"], run["way"]) for run in runs) == [
        (threads, way) for threads in (1, 2) for way in ("live", "stock")
    ]
    assert len({run["check"] for run in runs}) == 1
