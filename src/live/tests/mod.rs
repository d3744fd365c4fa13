//! Tests of live mode's machinery; `make test-rust` runs them.

mod changes;
mod fixtures;
mod left_alone;
mod replaced;
mod trampolines;

use std::cell::Cell;

use super::trampoline::{BufferLayout, Context, Purpose};
use super::trial::thread_pointer;

thread_local! {
    /// In the place of the word that says where a thread's buffer is.
    static WORD: Cell<usize> = const { Cell::new(0) };
}

/// The layout of include/refbuf_table.h is the binding's business: here it is enough that
/// all fields are elsewhere.
const LAYOUT: BufferLayout = BufferLayout {
    busy: 0,
    attention: 4,
    byte_mask: 8,
    slots: 16,
    skip: 24,
    slot_size: 16,
    slot_word: 8,
    mix: 0x9E37_79B9_7F4A_7C15,
    hash_shift: 50,
    credits: 0xFF_FFFF,
    credit_limit: 0x80_0000,
    refund: 0x100_0001,
};

/// What trampolines of this thread go by; nobody is called.
fn context() -> Context {
    let word = WORD.with(|word| std::ptr::from_ref(word) as usize);
    Context {
        word: word.wrapping_sub(thread_pointer()) as isize,
        buffer: LAYOUT,
        purpose: Purpose::Buffer { increment: 0, decrement: 0, take_in: 0 },
        vector_bytes: super::trampoline::vector_bytes(),
    }
}

/// An address of this program.
fn here() -> usize {
    here as fn() -> usize as usize
}
