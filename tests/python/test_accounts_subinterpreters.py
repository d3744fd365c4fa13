"""References that threads count without the interpreter, and sub-interpreters: all of it belongs to
the main one. On every build."""

import sys

import pytest


def test_enrolling_is_refused_in_a_subinterpreter(run_python):
    run_python(
        """
        import textwrap
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import refbuf, refbuf._refbuf
        code = textwrap.dedent(f'''
            import ctypes
            enroll = ctypes.PyDLL({refbuf._refbuf.__file__!r}).RefBuf_Enroll
            enroll.argtypes, enroll.restype = [ctypes.py_object], ctypes.c_void_p
            try:
                enroll([])
            except RuntimeError as error:
                assert "subinterpreter" in str(error), error
            else:
                raise AssertionError("it was enrolled")
        ''')
        try:
            inside = interpreters.create("legacy")
        except TypeError:
            inside = interpreters.create(isolated=False)
        if hasattr(interpreters, "exec"):
            failed = interpreters.exec(inside, code)
            assert failed is None, failed.formatted
        else:
            interpreters.run_string(inside, code)
        assert refbuf.stats().accounts == 0
        """
    )


def test_what_is_given_up_in_a_subinterpreter_is_finalized_in_the_main_one(run_python):
    run_python(
        """
        import textwrap
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters
        import refbuf, refbuf._refbuf, accountext
        from support import Plain, wait_until

        def here():
            current = interpreters.get_current()
            return int(current[0] if isinstance(current, tuple) else current)

        class Saying(Plain):
            __slots__ = ()
            def __del__(self):
                seen.append(here())

        seen = []
        refbuf.configure(heartbeat_ms=200)
        accounts = [accountext.enroll(Saying()) for _ in range(20)]
        code = textwrap.dedent(f'''
            import ctypes
            library = ctypes.PyDLL({refbuf._refbuf.__file__!r})
            for account in {accounts!r}:
                library.RefBuf_AccountRelease(ctypes.c_void_p(account))
                library.RefBuf_Flush()
                library.RefBuf_FlushAll()
        ''')
        try:
            inside = interpreters.create("legacy")
        except TypeError:
            inside = interpreters.create(isolated=False)
        if hasattr(interpreters, "exec"):
            failed = interpreters.exec(inside, code)
            assert failed is None, failed.formatted
        else:
            interpreters.run_string(inside, code)
        assert wait_until(lambda: len(seen) == 20), (seen, refbuf.stats())
        assert set(seen) == {here()}, seen
        """
    )


@pytest.mark.skipif(sys.version_info < (3, 13), reason="ctypes does not go with a GIL of one's own")
def test_a_dry_reserve_is_not_filled_from_a_subinterpreter(run_python):
    """One with a GIL of its own would race with who counts the object in the main interpreter."""
    run_python(
        """
        import textwrap, threading
        import _interpreters as interpreters
        import refbuf, refbuf._refbuf, accountext
        from support import Plain

        refbuf.configure(reserve=4)
        thing = Plain()
        before = refbuf.refcount(thing)
        account = accountext.enroll(thing)
        code = textwrap.dedent(f'''
            import ctypes
            library = ctypes.CDLL({refbuf._refbuf.__file__!r})  # lets go of the interpreter
            account = ctypes.c_void_p({account})
            for _ in range(20):
                for _ in range(20):
                    library.RefBuf_AccountIncRef(account)
                for _ in range(20):
                    library.RefBuf_AccountDecRef(account)
        ''')
        inside = interpreters.create("isolated")
        failures = []
        worker = threading.Thread(target=lambda: failures.append(interpreters.exec(inside, code)))
        worker.start()
        while worker.is_alive():
            many = [thing] * 10_000
            del many
        worker.join()
        assert failures == [None], failures[0].formatted
        interpreters.destroy(inside)
        assert refbuf.refcount(thing) == before + 1
        accountext.release(account)
        refbuf.flush_all()
        assert refbuf.refcount(thing) == before
        """
    )
