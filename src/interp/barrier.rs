//! Which barrier this process uses: see [`crate::core::sync`].

use std::sync::OnceLock;

use crate::core::sync::{self, Barrier};

/// Set before the first buffer of either kind.
static PREPARED: OnceLock<()> = OnceLock::new();

/// Set to 0, does without `membarrier(2)`, as on systems that lack it.
const VARIABLE: &str = "REFBUF_MEMBARRIER";

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

fn choose() {
    sync::prepare(std::env::var_os(VARIABLE).is_none_or(|value| value != "0"));
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
