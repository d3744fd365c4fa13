"""What tools/compat.py makes of reports and of disassembly: `python3 -m pytest tests/compat`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from refbuf._extbench.packages import PACKAGES as MEASURED

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import compat  # noqa: E402
from compatibility.building import Job  # noqa: E402
from compatibility.machine_code import functions  # noqa: E402
from compatibility.packages import REQUIREMENTS, Interpreter, packages  # noqa: E402
from compatibility.page import document  # noqa: E402
from compatibility.results import Result, differences  # noqa: E402
from compatibility.running import Run, outcomes  # noqa: E402

REPORT = """\
<testsuites><testsuite>
<testcase classname="t.A" name="test_fine"/>
<testcase classname="t.A" name="test_wrong"><failure message="no"/></testcase>
<testcase classname="t.A" name="test_torn_down"><failure message="no"/><error message="nor this"/></testcase>
<testcase classname="t.A" name="test_left_out"><skipped type="pytest.skip" message="so"/></testcase>
<testcase classname="t.A" name="test_known"><skipped type="pytest.xfail" message="so"/></testcase>
<testcase classname="t.A" name="test_of[&lt;object at 0x7f01&gt;]"/>
<testcase classname="t.A" name="test_of[&lt;object at 0x7f02&gt;]"/>
</testsuite></testsuites>
"""


def test_a_report_has_one_outcome_for_each_test():
    assert outcomes(REPORT) == {
        "t.A::test_fine": "passed",
        "t.A::test_wrong": "failed",
        "t.A::test_torn_down": "error",
        "t.A::test_left_out": "skipped",
        "t.A::test_known": "xfailed",
        "t.A::test_of[<object at 0x>]": "passed",
        "t.A::test_of[<object at 0x>] (2)": "passed",
    }


def pair(stock: dict[str, str], shim: dict[str, str]) -> dict[str, dict[str, str]]:
    return {"stock": stock, "shim": shim}


@pytest.mark.parametrize(
    ("rounds", "found"),
    [
        ([pair({"a": "passed", "b": "failed"}, {"a": "passed", "b": "failed"})], []),
        ([pair({"a": "passed"}, {"a": "failed"})], ["a: passed stock, failed with the shim"]),
        # To pass what fails stock is not the same either.
        ([pair({"a": "failed"}, {"a": "passed"})], ["a: failed stock, passed with the shim"]),
        ([pair({"a": "passed"}, {})], ["a: passed stock, missing with the shim"]),
        ([pair({}, {"a": "passed"})], ["a: missing stock, passed with the shim"]),
        # What stock does now and then, the shim may.
        ([pair({"a": "passed"}, {"a": "failed"}), pair({"a": "failed"}, {"a": "passed"})], []),
        (
            [pair({"a": "passed"}, {"a": "passed"}), pair({"a": "passed"}, {"a": "failed"})],
            ["a: passed stock, failed or passed with the shim"],
        ),
    ],
)
def test_differences_are_listed_by_name(rounds, found):
    assert differences(rounds) == found


STOCK = """\

Disassembly of section .text:

<count>:
\tmov    0x2ee3(%rip),%rax        # 4010 <_end+0x8>
\tcall   1030 <PyList_New@plt>
\tret
\tnopw   0x0(%rax,%rax,1)

<other>:
\tret
"""

MOVED = """\
<count>:
\tmov    0x3ff1(%rip),%rax        # 5120 <_end+0x18>
\tcall   1070 <PyList_New@plt>
\tret
\tcs nopw 0x0(%rax,%rax,1)
\txchg   %ax,%ax

<other>:
\tret
"""


def test_where_code_lies_does_not_matter():
    assert functions(STOCK) == functions(MOVED)
    assert functions(STOCK)["count"] == [
        ("mov DATA(%rip),%rax", "call <PyList_New@plt>", "ret"),
    ]


@pytest.mark.parametrize(("was", "now"), [("PyList_New", "PyDict_New"), ("%rax", "%rbx"), ("\tret\n", "")])
def test_what_code_does_matters(was, now):
    assert was in STOCK
    assert functions(STOCK) != functions(STOCK.replace(was, now, 1))


def test_every_package_is_pinned_and_a_sample_has_one_of_each_kind():
    pinned = packages()
    assert len({package.name for package in pinned}) == len(pinned) >= 9
    assert all(len(package.sha256) == 64 and package.modules for package in pinned)
    assert sorted(package.language for package in pinned if package.sample) == ["C", "C++", "Cython"]
    for line in REQUIREMENTS.read_text().splitlines():
        assert not line or line.startswith("#") or "==" in line


def test_what_is_measured_is_what_is_tested():
    pinned = {package.name: (package.version, package.sha256) for package in packages()}
    for package in MEASURED.values():
        source = package.source
        assert pinned[source.name] == (source.version, source.sha256)


@pytest.mark.parametrize(
    "arguments", [[], ["python3", "--rounds", "0"], ["python3", "--packages", "no-such"],
                  ["python3", "--sample", "--packages", "regex"], ["./no-such-python"]]
)  # fmt: skip
def test_bad_usage_is_status_2(arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["compat.py", *arguments])
    try:
        status = compat.main()
    except SystemExit as leaves:
        status = leaves.code
    assert status == 2


def result_of(tmp_path, *, gil: bool, shim: dict[str, str], rounds: int = 2):
    interpreter = Interpreter("3.13.5", gil, "shim", tmp_path, tmp_path)
    package = packages()[0]
    result = Result(Job(package, interpreter, tmp_path))
    for seconds in range(1, rounds + 1):
        stock = Run({"a": "passed", "b": "failed"}, float(seconds), {}, gil)
        result.rounds.append({"stock": stock, "shim": Run(shim, 1.5 * seconds, {"hits": 7}, gil)})
    return result


FACTS = {"rounds": 2, "processor": "p", "processors": 2, "compiler": "cc", "load": [1.0, 2.0]}


@pytest.mark.parametrize("gil", [True, False])
def test_the_document_has_outcomes_times_and_what_fails_stock_as_well(tmp_path, gil):
    text = document([result_of(tmp_path, gil=gil, shim={"a": "passed", "b": "failed"})], FACTS)
    assert "| 1/1/0 | the same | 1.50 s | 2.25 s | 1.500 | 1.500 to 1.500 |" in text
    assert "failed both ways: b." in text
    assert ("| 7 |" in text) == (not gil)


def test_the_document_has_what_is_not_as_stock(tmp_path):
    unlike = result_of(tmp_path, gil=True, shim={"a": "failed", "b": "failed"})
    broken = Result(unlike.job, broken="the shim build failed")
    text = document([unlike, broken], FACTS)
    assert "0/2/0, **not the same**" in text
    assert "a: passed stock, failed with the shim" in text
    assert "the shim build failed" in text
    assert "not as stock: 2" in text


def test_the_document_has_what_is_unsteady_stock(tmp_path):
    result = result_of(tmp_path, gil=True, shim={"a": "passed", "b": "failed"})
    result.rounds[1]["stock"].outcomes["a"] = "failed"
    assert result.fine
    assert "a failed in 1 rounds stock and 0 with the shim, of 2." in document([result], FACTS)
