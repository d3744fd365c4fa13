//! What bindgen reads from `include/refbuf.h` and CPython's headers, and the
//! proof that the core's own types have the same layouts.

#![allow(non_upper_case_globals, non_camel_case_types, non_snake_case, dead_code, missing_docs)]
#![allow(clippy::all)]

include!(concat!(env!("OUT_DIR"), "/layout.rs"));

#[cfg(not(loom))]
mod same {
    use std::mem::{align_of, offset_of, size_of};

    use crate::core::{buffer, gate, Slot};

    const _: () = {
        assert!(size_of::<Slot>() == size_of::<super::RefBuf_Slot>());
        assert!(align_of::<Slot>() >= align_of::<super::RefBuf_Slot>());
        assert!(buffer::LAYOUT.slot_object == offset_of!(super::RefBuf_Slot, object));
        assert!(buffer::LAYOUT.slot_word == offset_of!(super::RefBuf_Slot, word));
        assert!(buffer::LAYOUT.busy == offset_of!(super::RefBuf_Buffer, busy));
        assert!(buffer::LAYOUT.attention == offset_of!(super::RefBuf_Buffer, attention));
        assert!(buffer::LAYOUT.byte_mask == offset_of!(super::RefBuf_Buffer, byte_mask));
        assert!(buffer::LAYOUT.slots == offset_of!(super::RefBuf_Buffer, slots));
        assert!(buffer::LAYOUT.skip == offset_of!(super::RefBuf_Buffer, skip));
        assert!(buffer::CREDIT_BITS == super::REFBUF_CREDIT_BITS);
        assert!(buffer::CREDITS == super::REFBUF_CREDITS as u64);
        assert!(buffer::CREDIT_LIMIT == super::REFBUF_CREDIT_LIMIT as u64);
        assert!(buffer::MIX == super::REFBUF_MIX as u64);
        assert!(buffer::HASH_SHIFT == super::REFBUF_HASH_SHIFT);
        // The largest table's offsets are that long.
        assert!(crate::core::Shape::MOST_SLOTS * size_of::<Slot>() <= 1 << (64 - super::REFBUF_HASH_SHIFT));
        assert!(buffer::REFUND == super::REFBUF_REFUND as u64);
        // The header goes to its slow twin on any bit of `attention`.
        assert!(gate::REVOKED != 0 && gate::PARKED != 0 && gate::FENCED != 0);
    };
}
