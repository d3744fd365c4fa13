//! Buffered reference counts for free-threaded CPython.
//!
//! Each thread keeps a small hash table of *credits*: references that are
//! already counted on an object, which it hands out and takes back without an
//! atomic instruction. `docs/DESIGN.md` has the idea and the rules.
//!
//! | module | what it is |
//! |---|---|
//! | [`core`] | buffers, registry, settling, the handshake; no Python in it |
//! | `interp` | CPython: objects, threads, GC, fork, exit; one room a build kind |
//! | [`lab`] | the laboratory: the schemes of 2007, run and simulated; no Python in it |
//! | [`client`] | how another Rust extension uses the installed refbuf |
//! | `live` | live mode: the machine code of an unmodified interpreter, patched |
//! | [`Ref`] | a reference that any thread may clone and drop, attached or not |
//! | `start` | where the threads of a run wait for each other |
//! | `process` | both kinds of buffers together |
//! | `capi` | the exported C symbols and the capsule |
//! | `workloads` | multithreaded drivers on real objects, for tests and benchmarks |
//! | `py` | the Python module |

pub mod core;
pub mod lab;

#[cfg(feature = "python")]
pub mod client;

#[cfg(feature = "python")]
mod capi;
#[cfg(feature = "python")]
pub mod detached;
#[cfg(feature = "python")]
mod interp;
#[cfg(all(feature = "live", target_os = "linux", target_arch = "x86_64"))]
pub mod live;
#[cfg(feature = "python")]
mod process;
#[cfg(feature = "python")]
mod py;
#[cfg(not(loom))]
mod start;
#[cfg(feature = "python")]
mod workloads;

#[cfg(feature = "python")]
pub use detached::Ref;
