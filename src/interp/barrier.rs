//! Which barrier this process uses: see [`crate::core::sync`].

use std::ffi::CStr;
use std::sync::OnceLock;

use crate::core::sync::{self, Barrier};

/// Set before the first buffer of either kind.
static PREPARED: OnceLock<()> = OnceLock::new();

/// Set to 0, does without `membarrier(2)`, as on systems that lack it.
const VARIABLE: &CStr = c"REFBUF_MEMBARRIER";

/// Chooses the barrier, the first time.
pub(crate) fn prepare() {
    PREPARED.get_or_init(choose);
}

/// A forked child is a process of its own: it registers with the kernel for
/// itself, and may get another answer.
pub(crate) fn prepare_in_child() {
    if PREPARED.get().is_some() {
        choose();
    }
}

/// The environment is read without Rust's lock on it, which another thread of a forked
/// child's parent may have held.
fn choose() {
    // SAFETY: a child has one thread, and the first choice is made where Python code runs,
    // which reads and changes the environment by the same functions of the C library.
    let value = unsafe { libc::getenv(VARIABLE.as_ptr()) };
    // SAFETY: a C string where it is not null; looked at before anything else runs here.
    let is_off = !value.is_null() && unsafe { CStr::from_ptr(value) } == c"0";
    sync::prepare(!is_off);
}

/// What was chosen.
pub(crate) fn chosen() -> Option<Barrier> {
    PREPARED.get().map(|()| if sync::needs_fences() { Barrier::Fences } else { Barrier::Membarrier })
}

/// How the handshake is done, in a word.
pub(crate) fn name() -> &'static str {
    match chosen() {
        Some(Barrier::Membarrier) => "membarrier",
        Some(Barrier::Fences) => "fences",
        None => "none",
    }
}
