"""Live mode: the interpreter's own counts go through the buffers, and all can be put back.

Each test patches an interpreter of its own.
"""

import platform
import shutil
import subprocess
import sys

import pytest
import refbuf
from building import compile_extension

LIVE = refbuf._refbuf.live_obstacle() is None
live = pytest.mark.skipif(not LIVE, reason="live mode is for free-threaded builds on x86-64 Linux")

FIRST = """
import gc, hashlib, json, sys, threading, time, weakref
import refbuf

def code():
    "A hash of all executable memory of the interpreter and of extensions, without refbuf's."
    sums = {}
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb") as memory:
        for line in maps:
            bounds, rights, _, _, _, *path = line.split()
            if "x" in rights and path and "python" in path[0] and "_refbuf" not in path[0]:
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                memory.seek(start)
                sums[path[0], start] = (rights, hashlib.sha256(memory.read(end - start)).hexdigest())
    return sums

def in_thread(work, count=1):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

def eventually(condition):
    for _ in range(1000):
        if condition():
            return True
        time.sleep(0.01)
    return False
"""


@pytest.fixture
def run_live(run_python):
    def run(code, *arguments, more="", **options):
        return run_python(code, *arguments, first=FIRST + more, **options)

    return run


@live
def test_the_report_says_what_was_done(run_live):
    run_live("""
    report = refbuf.install()
    assert refbuf.installed() and refbuf.install() is report
    main, *rest = report.images
    assert main.adds > 1000 and main.swaps > 100 and main.drops > 30 and main.hooked == ("_Py_DecRefShared",)
    assert len(main.left_alone) < 10, main.left_alone
    assert report.sites == sum(image.adds + image.swaps + image.drops for image in report.images)
    assert json.loads(json.dumps(report.as_dict()))["sites"] == report.sites
    assert str(report.sites) in repr(report)
    """)


@live
def test_all_bytes_are_put_back(run_live):
    run_live("""
    import _json
    before = code()
    assert len(before) >= 2
    for _ in range(20):
        refbuf.install()
        during = code()
        assert set(during) >= set(before) and during != before
        # Executable, and not writable.
        assert all("w" not in rights for rights, _ in during.values())
        refbuf.uninstall()
        assert not refbuf.installed()
        # Others may have been loaded meanwhile.
        assert {key: value for key, value in code().items() if key in before} == before
    refbuf.uninstall()
    """)


@live
def test_it_may_be_installed_a_thousand_times_while_the_program_works(run_live):
    run_live(
        """
        before = code()
        things = [object() for _ in range(50)]
        counts = [sys.getrefcount(thing) for thing in things]

        def work(turn):
            # By a thread that ends before the next time: main's objects are another's to it.
            copies = [list(things) for _ in range(20)]
            table = {number: thing for number, thing in enumerate(things)}
            assert all(table[number] is thing for number, thing in enumerate(things))

        for turn in range(1000):
            refbuf.install()
            work(turn)
            if turn % 10 == 0:
                in_thread(lambda: work(turn))
            refbuf.uninstall()
            work(turn)
        assert code() == before
        refbuf.flush_all()
        assert [sys.getrefcount(thing) for thing in things] == counts
        """,
        timeout=100,
    )


@live
def test_what_hangs_on_a_dead_container_dies_with_it(run_live):
    """However deep."""
    run_live("""
    refbuf.configure(heartbeat_ms=100)
    refbuf.install()
    class Thing:
        pass
    def walk(tree):
        while isinstance(tree, list):
            for tree in tree:
                pass
    for _ in range(3):
        thing = Thing()
        death = weakref.ref(thing)
        tree = thing
        for _ in range(20):
            tree = [tree]
        del thing
        done, go = threading.Event(), threading.Event()
        def use():
            walk(tree)
            done.set()
            go.wait()
        sleeper = threading.Thread(target=use)
        sleeper.start()
        done.wait()
        before = refbuf.stats().beats
        del tree
        # A level a heartbeat would be 20 at the least.
        assert eventually(lambda: death() is None)
        assert refbuf.stats().beats - before <= 8, refbuf.stats().beats - before
        go.set()
        sleeper.join()
    """)


@live
def test_who_gives_credits_back_takes_none_in(run_live):
    """A flush drops the last reference to a container whose items another thread has credits on."""
    run_live("""
    refbuf.configure(heartbeat_ms=60_000)
    refbuf.install()
    class Thing:
        pass
    made, things = [], None
    handed, done, go = threading.Event(), threading.Event(), threading.Event()
    def use():
        handed.wait()
        for _ in range(100):
            for thing in things:
                pass
        done.set()
        go.wait()
    user = threading.Thread(target=use)
    user.start()
    # Its objects are nobody's once it has ended; `user` is there already, and so not in its place.
    maker = threading.Thread(target=lambda: made.append([Thing() for _ in range(50)]))
    maker.start()
    maker.join()
    container = made.pop()
    things = tuple(container)
    handed.set()
    done.wait()
    things = None
    refbuf.flush()
    others = refbuf.stats().credits
    assert others > 0
    for _ in range(100):
        again = container
    again = None
    assert refbuf.stats().credits > others, "the container is in the table"
    death = weakref.ref(container[0])
    del container
    refbuf.flush()
    assert refbuf.stats().credits == others
    go.set()
    user.join()
    refbuf.flush_all()
    assert death() is None
    """)


@live
def test_perf_can_name_the_trampolines(run_live):
    run_live("""
    import os
    report = refbuf.install(perf_map=True)
    path = f"/tmp/perf-{os.getpid()}.map"
    try:
        with open(path) as names:
            lines = [line.split() for line in names]
    finally:
        os.unlink(path)
    assert len(lines) == report.sites + 1  # and the entry of _Py_DecRefShared
    assert all(int(size, 16) > 0 and name.startswith("refbuf:") for _, size, name in lines)
    with open("/proc/self/maps") as maps:
        bounds = [line.split()[0].split("-") for line in maps if "r-xp" in line]
    executable = [[int(bound, 16) for bound in pair] for pair in bounds]
    for address, size, _ in lines:
        first, last = int(address, 16), int(address, 16) + int(size, 16)
        assert any(start <= first and last <= end for start, end in executable)
    """)


@live
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm reads what gdb is told")
def test_gdb_is_told_what_perf_is(run_live):
    run_live("""
    import ctypes, os, subprocess, tempfile
    from refbuf import _refbuf

    class Entry(ctypes.Structure):
        pass

    Entry._fields_ = [("next", ctypes.POINTER(Entry)), ("previous", ctypes.POINTER(Entry)),
                      ("file", ctypes.POINTER(ctypes.c_char)), ("size", ctypes.c_uint64)]

    class Descriptor(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("action", ctypes.c_uint32),
                    ("relevant", ctypes.POINTER(Entry)), ("first", ctypes.POINTER(Entry))]

    def told():
        entry = Descriptor.in_dll(ctypes.CDLL(_refbuf.__file__), "__jit_debug_descriptor").first
        names = set()
        while entry:
            with tempfile.NamedTemporaryFile() as elf:
                elf.write(entry.contents.file[: entry.contents.size])
                elf.flush()
                out = subprocess.check_output(["nm", "--print-size", elf.name], text=True)
            for line in out.splitlines():
                address, size, kind, name = line.split()
                assert kind in "tb", line  # in a section, which has no bytes
                names.add((int(address, 16), int(size, 16), name))
            entry = entry.contents.next
        return names

    def listed():
        with open(path) as lines:
            return {(int(address, 16), int(size, 16), name) for address, size, name in map(str.split, lines)}

    path = f"/tmp/perf-{os.getpid()}.map"
    assert not told()
    report = refbuf.install(perf_map=True)
    try:
        assert told() == listed() and len(told()) == report.sites + 1
        import _elementtree
        assert told() == listed()
    finally:
        os.unlink(path)
    """)


@live
def test_counting_goes_through_the_buffers(run_live):
    run_live("""
    refbuf.install()
    shared = (object(), [], "x" * 50)
    counts = [sys.getrefcount(thing) for thing in shared]
    def work():
        for _ in range(20_000):
            for thing in shared:
                kept = [thing, thing]
    before = refbuf.stats()
    in_thread(work, 3)
    after = refbuf.stats()
    assert after.hits - before.hits > 200_000
    assert after.atomics - before.atomics < 5_000
    refbuf.flush_all()
    assert [sys.getrefcount(thing) for thing in shared] == counts
    """)


@live
def test_objects_are_finalized_once_and_in_time(run_live):
    run_live("""
    refbuf.install()
    class Plain:
        def __init__(self, number):
            self.number = number
        def __del__(self):
            ended.append(self.number)
    ended, lists = [], [[] for _ in range(4)]
    objects = [Plain(number) for number in range(400)]
    refs = [weakref.ref(one) for one in objects]
    def work():
        for turn in range(200):
            for one in objects:
                held = (one, one.number)
        del held, one
    in_thread(work, 4)
    del objects, work
    assert eventually(lambda: len(ended) == 400), len(ended)
    assert sorted(ended) == list(range(400)) and all(ref() is None for ref in refs)
    time.sleep(0.05)
    assert len(ended) == 400
    """)


@live
def test_a_cycle_is_collected(run_live):
    run_live("""
    refbuf.install()
    class Node:
        pass
    refs = []
    def work():
        node = Node()
        node.other = Node()
        node.other.other = node
        refs.append(weakref.ref(node))
        in_thread(lambda: [node.other.other for _ in range(1000)])
    in_thread(work, 3)
    gc.collect()
    assert eventually(lambda: gc.collect() is not None and all(ref() is None for ref in refs))
    """)


@live
def test_extensions_are_patched_as_they_are_loaded(run_live):
    run_live("""
    assert "countext" not in sys.modules
    before = code()
    refbuf.install()
    import countext, _json, math
    during = code()
    refbuf.uninstall()
    new = {key for key in during if key not in before}
    assert any("_json" in path or "math" in path for path, _ in new)
    assert {key: value for key, value in code().items() if key in before} == before
    """)


@live
def test_an_extension_may_be_patched_while_it_runs(run_live, tmp_path):
    """One that another has loaded: its code is there all the time, before or after."""
    for number in range(20):
        directory = tmp_path / str(number)
        directory.mkdir()
        compile_extension("countext", directory)
    run_live(
        """
        import importlib.machinery, importlib.util, pathlib
        from refbuf import _live, _refbuf

        refbuf.install()
        for directory in pathlib.Path(sys.argv[1]).iterdir():
            file, = directory.iterdir()
            loader = importlib.machinery.ExtensionFileLoader("countext", str(file))
            spec = importlib.util.spec_from_loader("countext", loader)
            module = _live._create_dynamic(spec)
            loader.exec_module(module)
            thing, going, stop = [], threading.Event(), threading.Event()

            def work():
                while not stop.is_set():
                    module.stock_incref(id(thing), 1000)
                    module.stock_decref(id(thing), 1000)
                    going.set()

            threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
            for thread in threads:
                thread.start()
            going.wait()
            report = _refbuf.live_load_extension(str(file), sys.getdlopenflags())
            # That of stock_incref; refbuf's own are behind a look into the table.
            assert report["adds"] == 1, report
            time.sleep(0.02)
            stop.set()
            for thread in threads:
                thread.join()
            assert _refbuf.live_load_extension(str(file), sys.getdlopenflags()) is None
            refbuf.flush_all()
            assert module.stock_count(id(thing)) == 1
        """,
        str(tmp_path),
    )


@live
def test_who_forbids_an_import_is_asked_before_the_file_is_loaded(run_live, tmp_path):
    compile_extension("countext", tmp_path)
    run_live(
        """
        def forbid(event, arguments):
            if event == "import" and arguments[0] == "countext" and arguments[1] is not None:
                raise PermissionError("not this one")

        refbuf.install()
        sys.path.insert(0, sys.argv[1])
        sys.addaudithook(forbid)
        try:
            import countext
        except PermissionError as error:
            frames = []
            trace = error.__traceback__
            while trace is not None:
                frames.append(trace.tb_frame.f_code.co_filename)
                trace = trace.tb_next
            assert not any("_live" in frame for frame in frames), frames
        else:
            raise AssertionError
        assert sys.argv[1] not in open("/proc/self/maps").read()
        """,
        str(tmp_path),
    )


@live
def test_extensions_are_loaded_as_the_program_wants(run_live):
    run_live("""
    import os
    from refbuf import _refbuf
    seen, load = [], _refbuf.live_load_extension
    _refbuf.live_load_extension = lambda *arguments: seen.append(arguments[1:]) or load(*arguments)
    refbuf.install()
    sys.setdlopenflags(os.RTLD_LAZY | os.RTLD_GLOBAL)
    import _bisect
    assert seen == [(os.RTLD_LAZY | os.RTLD_GLOBAL,)]
    """)


@live
@pytest.mark.parametrize("warnings", ["default", "error"])
def test_an_extension_that_cannot_be_patched_is_imported(run_process, warnings):
    code = """if True:
    import refbuf
    from refbuf import _refbuf

    def refuse(*_):
        raise refbuf.UnsupportedError("some reason")

    refbuf.install()
    _refbuf.live_load_extension = refuse
    import _bisect
    _bisect.bisect_right
    """
    command = [sys.executable, "-W", warnings, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("refbuf: some reason: its own counts are left alone") == 1


# A filter (seccomp(2)) that has a system call fail with EACCES: mprotect for execution, or any mremap.
FORBID = """
import ctypes, struct

def forbid(number, argument=None, bit=0):
    load, equal, jump_set, end = 0x20, 0x15, 0x45, 0x06
    code = [(load, 0, 0, 0)]
    if argument is None:
        code += [(equal, 0, 1, number)]
    else:
        code += [(equal, 0, 3, number), (load, 0, 0, 16 + 8 * argument), (jump_set, 0, 1, bit)]
    code += [(end, 0, 0, 0x00050000 | 13), (end, 0, 0, 0x7FFF0000)]
    packed = b"".join(struct.pack("HBBI", *one) for one in code)
    memory = ctypes.create_string_buffer(packed)
    program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(memory))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program) == 0, ctypes.get_errno()
"""


@live
@pytest.mark.parametrize("call", ["10, argument=2, bit=4", "25"], ids=["mprotect", "mremap"])
def test_a_denied_change_of_memory_leaves_the_program_as_it_was(run_live, call):
    run_live(
        f"""
        import _bisect
        forbid({call})
        before = code()
        for _ in range(2):
            try:
                refbuf.install()
            except refbuf.UnsupportedError as error:
                assert "ermission denied" in str(error), error
            else:
                raise AssertionError("it is not denied")
            assert not refbuf.installed() and code() == before
        shared = [object()]
        in_thread(lambda: [shared[0] for _ in range(1000)], 2)
        checks = refbuf._refbuf.live_examine([])["checks"]
        name, fine, what = checks[-1]
        assert name == "memory" and not fine and "ermission denied" in what, checks
        """,
        more=FORBID,
    )


@live
def test_it_is_refused_while_other_threads_run(run_live):
    run_live("""
    before = code()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    for change, wanted in (refbuf.install, "installing"), (refbuf.uninstall, None):
        try:
            change()
        except refbuf.UnsupportedError as error:
            assert str(error).startswith(f"{wanted} while 1 other Python thread runs is not safe: ")
        else:
            assert wanted is None
    assert not refbuf.installed()
    assert {key: value for key, value in code().items() if key in before} == before
    stop.set()
    thread.join()
    refbuf.install()
    """)


@live
def test_a_forked_child_goes_on(run_live):
    run_live("""
    import os
    refbuf.install()
    shared = [object()]
    in_thread(lambda: [shared[0] for _ in range(1000)], 2)
    child = os.fork()
    if child == 0:
        in_thread(lambda: [shared[0] for _ in range(1000)], 2)
        os._exit(0 if refbuf.installed() and refbuf.stats().hits > 0 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)


@live
@pytest.mark.parametrize("extensions", [True, False])
def test_threads_may_count_to_the_end(run_live, extensions):
    run_live(f"""
    refbuf.install(extensions={extensions})
    shared = (object(), {{"a": object()}})
    def work():
        while not stop.is_set():
            for _ in range(100):
                shared[0], shared[1]["a"]
    stop = threading.Event()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    stop.set()
    """)


@pytest.mark.skipif(LIVE, reason="live mode can be used here")
def test_elsewhere_it_is_refused():
    wanted = "has a GIL" if sys.version_info < (3, 13) and platform.machine() == "x86_64" else "live mode"
    with pytest.raises(refbuf.UnsupportedError, match=wanted):
        refbuf.install()
    assert not refbuf.installed()
    refbuf.uninstall()
