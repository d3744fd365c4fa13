"""`python -m refbuf doctor`: it says what install() would say, and changes nothing."""

import json
import platform
import sys
import sysconfig

import pytest
import refbuf
from programs import LIVE, live
from refbuf._cli import doctor

KEYS = {"ok", "reason", "refbuf", "interpreter", "checks", "sites"}
IMAGE = {
    "path": "/there/python",
    "adds": 1500,
    "swaps": 300,
    "drops": 40,
    "hooked": True,
    "left_alone": [(0x1234, "too short"), (0x5678, "its flags are read")],
    "trampoline_bytes": 70_000,
    "registers_saved": 100,
    "seconds": 0.05,
}
EXTENSION = IMAGE | {
    "path": "/there/extension.so",
    "adds": 7,
    "swaps": 0,
    "drops": 0,
    "hooked": False,
    "left_alone": [],
}
GOOD = {
    "obstacle": None,
    "checks": [
        ("system", True, "membarrier is there"),
        ("memory", True, "it may be changed"),
        ("code", True, "1,807 sites in 2 files"),
        ("atomics", True, "they are cheap"),
        ("trampolines", True, "each does what its instruction does"),
        ("room", True, "there is room"),
        ("threads", True, "there is no other"),
    ],
    "images": [IMAGE, EXTENSION],
}


@pytest.fixture
def here(monkeypatch):
    """Has everything here be as told: by default, as live mode wants it."""

    def here(native=GOOD, *, system="Linux", machine="x86_64", version=(3, 13, 5), configured=None):
        configured = {
            "Py_GIL_DISABLED": 1,
            "Py_DEBUG": 0,
            "CONFIG_ARGS": "'--disable-gil' '--with-lto' '--enable-optimizations'",
        } | (configured or {})
        monkeypatch.setattr(refbuf._refbuf, "live_examine", lambda extensions, lulls: native)
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(platform, "python_version", lambda: ".".join(map(str, version)))
        monkeypatch.setattr(sysconfig, "get_config_var", configured.get)
        monkeypatch.setattr(doctor, "HERE", version[:2])
        monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)

    return here


@pytest.fixture
def examine(capsys):
    """Runs it in this process, both ways; returns the object and the text."""

    def examine():
        status = doctor.main(["--json"])
        found = json.loads(capsys.readouterr().out)
        assert doctor.main([]) == status == (0 if found["ok"] else 1)
        assert set(found) == KEYS and found["ok"] == (found["reason"] is None)
        assert found["ok"] == all(check["ok"] is not False for check in found["checks"])
        return found, capsys.readouterr().out

    return examine


def results(found):
    return {check["name"]: check["ok"] for check in found["checks"]}


def details(found):
    return {check["name"]: check["detail"] for check in found["checks"]}


def test_an_environment_that_makes_no_sense_is_said(here, examine, monkeypatch):
    here()
    monkeypatch.setenv("REFBUF_LULLS", "maybe")
    found, _ = examine()
    assert found["reason"] == "REFBUF_LULLS must be 1, 0 or empty, not 'maybe'"


def test_where_all_is_well(here, examine):
    here()
    found, text = examine()
    assert found["ok"]
    assert list(results(found).items()) == [
        ("platform", True),
        ("free-threaded", True),
        ("release build", True),
        ("version", True),
        ("compiler", None),
        ("system", True),
        ("memory", True),
        ("code", True),
        ("atomics", True),
        ("trampolines", True),
        ("room", True),
        ("threads", True),
    ]
    assert found["sites"]["adds"] == 1507 and found["sites"]["swaps"] == 300 and found["sites"]["drops"] == 40
    assert found["sites"]["left_alone"] == [
        {"path": "/there/python", "offset": 0x1234, "reason": "too short"},
        {"path": "/there/python", "offset": 0x5678, "reason": "its flags are read"},
    ]
    assert [image["path"] for image in found["sites"]["images"]] == ["/there/python", "/there/extension.so"]
    assert text.endswith("\nLive mode can be used here.\n")
    assert "✓ memory" in text and "✗" not in text
    assert "/there/python: 1500 adds, 300 swaps, 40 drops, the entry of _Py_DecRefShared\n" in text
    assert "left alone at 0x1234: too short" in text


def test_what_the_native_module_finds_is_the_reason(here, examine):
    checks = [*GOOD["checks"][:1], ("memory", False, "code cannot be changed")]
    here({"obstacle": None, "checks": checks, "images": []})
    found, text = examine()
    assert found["reason"] == "code cannot be changed"
    assert results(found)["system"] is True
    assert results(found)["code"] is results(found)["threads"] is None
    assert found["sites"] == {"adds": 0, "swaps": 0, "drops": 0, "left_alone": [], "images": []}
    assert "✗ memory" in text and "· code" in text
    assert text.endswith("\nLive mode cannot be used here: code cannot be changed.\n")


def test_an_obstacle_of_the_system(here, examine):
    here({"obstacle": "there is no xsave", "checks": [("system", False, "there is no xsave")], "images": []})
    found, _ = examine()
    assert found["reason"] == "there is no xsave" and results(found)["memory"] is None


@pytest.mark.parametrize(
    ("where", "name", "sentence"),
    [
        ({"system": "Darwin", "machine": "arm64"}, "platform", "Darwin on arm64"),
        ({"machine": "aarch64"}, "platform", "Linux on aarch64"),
        ({"configured": {"Py_GIL_DISABLED": 0}}, "free-threaded", "has a GIL"),
        ({"configured": {"Py_GIL_DISABLED": None}, "version": (3, 11, 7)}, "version", "older"),
        ({"configured": {"Py_DEBUG": 1}}, "release build", "debug"),
    ],
)
def test_elsewhere_it_says_why_not(here, examine, where, name, sentence):
    said = "live mode is not for here"
    here({"obstacle": said, "checks": [("system", False, said)], "images": []}, **where)
    found, text = examine()
    assert results(found)[name] is False and sentence in details(found)[name]
    # Once, and in install's words.
    assert found["reason"] == said and results(found)["system"] is None
    assert text.endswith("\nLive mode cannot be used here: live mode is not for here.\n")


def test_versions(here, examine):
    for version, ok, sentence in (
        ((3, 12, 1), False, "older than what live mode knows, 3.13 to 3.15"),
        ((3, 13, 5), True, "live mode has been run on 3.13"),
        ((3, 15, 0), True, "live mode has not been run on it"),
        ((3, 16, 0), None, "newer than what live mode knows, 3.13 to 3.15"),
    ):
        here(version=version)
        found, _ = examine()
        assert results(found)["version"] is ok and sentence in details(found)["version"]


@pytest.mark.parametrize(
    ("given", "lto", "pgo", "sentence"),
    [
        ("'--with-lto' '--enable-optimizations'", True, True, "with link-time optimization, with profile"),
        ("'--with-lto=thin' 'CFLAGS=-O2 --enable-optimizations'", True, False, "without profile-guided"),
        ("'--with-lto' '--with-lto=no'", False, False, "without link-time optimization"),
        ("", False, False, "without link-time optimization, without profile-guided"),
        (None, None, None, "link-time optimization unknown"),
    ],
)
def test_how_the_interpreter_was_configured(here, examine, given, lto, pgo, sentence):
    here(configured={"CONFIG_ARGS": given})
    found, _ = examine()
    assert found["interpreter"]["lto"] is lto and found["interpreter"]["pgo"] is pgo
    assert sentence in details(found)["compiler"]


def test_an_enabled_gil_is_said(here, examine, monkeypatch):
    here()
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: True)
    found, _ = examine()
    assert found["ok"] and "GIL is enabled" in details(found)["free-threaded"]


def test_bad_usage_is_one_sentence(start):
    ended = start("-m", "refbuf", "doctor", "now")
    assert (ended.returncode, ended.out) == (2, "")
    assert ended.err.startswith("refbuf: doctor: ") and ended.err.count("\n") == 1


def test_help_has_the_keys(start):
    ended = start("-m", "refbuf", "doctor", "--help")
    assert ended.returncode == 0
    assert all(f"  {key} " in ended.out for key in KEYS)


# -- the real thing -----------------------------------------------------------


def test_it_says_what_install_says(start):
    ended = start("-m", "refbuf", "doctor", "--json")
    found = json.loads(ended.out)
    assert ended.err == "" and ended.returncode == (0 if LIVE else 1)
    assert found["ok"] == LIVE, found
    about = found["interpreter"]
    assert about["version"] == platform.python_version() and about["executable"] == sys.executable
    said = start("-c", "import refbuf; refbuf.install()")
    assert (said.returncode == 0) == LIVE
    assert LIVE or said.err.rstrip().endswith(found["reason"])


@live
def test_it_finds_the_sites_that_install_replaces(start):
    found = json.loads(start("-m", "refbuf", "doctor", "--json").out)
    said = start("-c", "import json, refbuf; print(json.dumps(refbuf.install(extensions=False).as_dict()))")
    wanted = json.loads(said.out)["images"][0]
    main = next(image for image in found["sites"]["images"] if image["path"] == wanted["path"])
    assert [main[key] for key in ("adds", "swaps", "drops", "left_alone")] == [
        wanted[key] for key in ("adds", "swaps", "drops", "left_alone")
    ]


def test_a_terminal_without_ticks(start):
    ended = start("-m", "refbuf", "doctor", env={"PYTHONIOENCODING": "ascii"})
    assert ended.err == "" and ended.out.isascii()
    assert ended.out.splitlines()[-1].startswith("Live mode can")
