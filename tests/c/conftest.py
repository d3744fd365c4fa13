"""Extensions built once a run, and objects of every kind of ownership."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from c_build import CPP, SHIM_MODULES, C, build_module, load


class Thing:
    """An object that can be watched."""


@pytest.fixture(scope="session")
def extensions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the two torture modules, not yet imported."""
    if C is None or CPP is None:
        pytest.fail("the C header cannot be tested: install gcc and g++")
    folder = tmp_path_factory.mktemp("extensions")
    build_module("torture_c", folder, (C, "torture.c"), (C, "torture_unit.c"))
    build_module("torture_cpp", folder, (CPP, "torture.cpp"), (C, "torture_unit.c"))
    return folder


def _connected(name: str, folder: Path) -> ModuleType:
    (path,) = folder.glob(f"{name}.*.so")
    module = load(name, path)
    module.connect()
    return module


@pytest.fixture(scope="session")
def torture_c(extensions: Path) -> ModuleType:
    return _connected("torture_c", extensions)


@pytest.fixture(scope="session")
def torture_cpp(extensions: Path) -> ModuleType:
    return _connected("torture_cpp", extensions)


@pytest.fixture(params=["torture_c", "torture_cpp"])
def torture(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two, connected to refbuf."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def made_elsewhere() -> Iterator[Callable[[Callable[[], object]], object]]:
    """Calls a function in a thread that stays: what it makes is owned there."""
    leave = threading.Event()
    threads = []

    def call(make: Callable[[], object]) -> object:
        made = []
        ready = threading.Event()

        def body() -> None:
            made.append(make())
            ready.set()
            leave.wait()

        threads.append(threading.Thread(target=body))
        threads[-1].start()
        assert ready.wait(60)
        return made.pop()

    yield call
    leave.set()
    for thread in threads:
        thread.join()


@pytest.fixture(params=["own", "foreign", "orphaned"])
def thing(request: pytest.FixtureRequest, made_elsewhere: Callable[..., object]) -> object:
    """An object of this thread's, of a living other thread's, and of an ended one's."""
    if request.param == "own":
        return Thing()
    if request.param == "foreign":
        return made_elsewhere(Thing)
    made: list[Thing] = []
    thread = threading.Thread(target=lambda: made.append(Thing()))
    thread.start()
    thread.join()
    return made.pop()


@pytest.fixture(scope="session")
def shim_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shim's torture modules, stock and shimmed, not yet imported."""
    folder = tmp_path_factory.mktemp("shim")
    with ThreadPoolExecutor(2) as pool:
        for built in [pool.submit(module.build, folder) for module in SHIM_MODULES]:
            built.result()
    return folder


@pytest.fixture(params=SHIM_MODULES, ids=str)
def shim_torture(request: pytest.FixtureRequest, shim_folder: Path) -> ModuleType:
    """Each of the shim's torture modules, the stock ones among them."""
    name = request.param.name
    if name in sys.modules:
        return sys.modules[name]
    (path,) = shim_folder.glob(f"{name}.*.so")
    return load(name, path)
