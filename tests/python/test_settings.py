"""The tests again, with what may be chosen chosen otherwise."""

import sys

import pytest
from building import HERE

AGAIN = (
    "test_exact_counts.py",
    "test_finalized_once.py",
    "test_staleness.py",
    "test_finalizers.py",
    "test_gc.py",
    "test_state_machine.py",
)

SETTINGS = {
    "fences in place of membarrier": {"REFBUF_MEMBARRIER": "0"},
    "16 slots": {"REFBUF_TEST_SLOTS": "16"},
    "2 slots": {"REFBUF_TEST_SLOTS": "2"},
    "2 slots and fences": {"REFBUF_TEST_SLOTS": "2", "REFBUF_MEMBARRIER": "0"},
}


ACCOUNTS = {
    "fences in place of membarrier": {"REFBUF_MEMBARRIER": "0"},
    "16 account slots": {"REFBUF_TEST_ACCOUNT_SLOTS": "16"},
    "1 account slot": {"REFBUF_TEST_ACCOUNT_SLOTS": "1"},
    "2 account slots and fences": {"REFBUF_TEST_ACCOUNT_SLOTS": "2", "REFBUF_MEMBARRIER": "0"},
}


@pytest.mark.parametrize("setting", ACCOUNTS)
def test_all_of_accounts_holds_with(run_process, setting):
    options = ("-q", "-p", "no:cacheprovider", "-W", "default")
    files = [
        HERE / name
        for name in ("test_accounts.py", "test_accounts_subinterpreters.py", "test_accounts_staleness.py")
    ]
    out = run_process([sys.executable, "-m", "pytest", *options, *files], env=ACCOUNTS[setting], timeout=120)
    assert " passed" in out and "failed" not in out


@pytest.mark.needs_buffering
@pytest.mark.parametrize("setting", SETTINGS)
def test_all_holds_with(run_process, setting):
    environment = {"REFBUF_TEST_EXAMPLES": "15", **SETTINGS[setting]}
    options = ("-q", "-p", "no:cacheprovider", "-W", "default")
    files = [HERE / name for name in AGAIN]
    out = run_process([sys.executable, "-m", "pytest", *options, *files], env=environment, timeout=120)
    assert " passed" in out and "failed" not in out


@pytest.mark.needs_buffering
def test_without_membarrier_there_is_no_inline_path(run_python):
    info = """
    import refbuf
    info = refbuf._refbuf.build_info()
    print(info["barrier"], info["inline"])
    """
    assert run_python(info, env={"REFBUF_MEMBARRIER": "0"}) == "fences False\n"
    assert run_python(info) in ("membarrier True\n", "fences False\n")


@pytest.mark.needs_buffering
def test_slots_are_what_was_configured(run_python):
    for slots in 2, 16, 1024:
        out = run_python(f"import refbuf; refbuf.configure(slots={slots}); print(refbuf.stats().slots)")
        assert out == f"{slots}\n"


@pytest.mark.needs_buffering
@pytest.mark.parametrize("batches", [(1, 1), (1, 32768), (32768, 32768)])
def test_counts_are_exact_with_the_smallest_and_largest_batches(run_python, batches):
    run_python(
        """
        import countext
        from support import Plain, addresses, counts, in_threads, settled_counts

        objects = [Plain() for _ in range(200)]
        before = counts(objects)
        in_threads(8, lambda number: countext.churn(addresses(objects), 20_000, number))
        refbuf.flush_all()
        assert counts(objects) == before
        assert refbuf.stats().acquires > 0
        """,
        first="import refbuf; refbuf.configure(first_batch={}, largest_batch={})\n".format(*batches),
    )
