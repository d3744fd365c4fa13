//! One thread's buffer: a table of credits.
//!
//! ```text
//! acquire   object += K  (one atomic add)   slot = K        the only time an increment touches the object
//! spend     slot -= 1                                       hands out one of the references held
//! refund    slot += 1                                       takes the reference back
//! settle    object -= slot (one atomic op)  slot empty      collision, GC start, heartbeat, thread end
//! ```
//!
//! **Slot.** `object` is an address, `word` holds credits (low 24 bits) and
//! refunds seen (above). Credits are references that the object's own count
//! holds, so a slot with credits keeps its object alive. A slot without credits
//! may name an object that has died: such a slot never counts as a hit, and its
//! object is never touched.
//!
//! | state | credits | a spend | a refund |
//! |---|---|---|---|
//! | empty or dry | 0 | acquires | is taken in, if other references exist |
//! | resident | 1 .. limit | hits | hits |
//! | full | limit | hits | settles half, then hits |
//!
//! **Two places.** The hash of its address gives an object a pair of slots, side
//! by side in one cache line, and either may be for it. docs/HASHING.md has what
//! that gains over one. Never are both for one object.
//!
//! **A place is earned.** A miss moves in at once where one of the two has no
//! credits. Otherwise it is a challenge ([`rank`]), and only an object that is
//! wanted oftener than a resident evicts it. Until then the operation takes the
//! interpreter's own path, so that hot objects that share a place, or a working
//! set far larger than the table, cost what they cost without refbuf.
//!
//! **Standing aside.** Where hardly anything hits, even looking costs: it keeps
//! the processor from running ahead to the next object. So every now and then
//! the owner compares hits and misses, and where the table does not pay, skips it
//! for a while (`head.skip` operations, longer each time in a row), then looks
//! again.
//!
//! **How many.** An acquire takes 2^k credits, k small at first and one more
//! each time the slot runs dry (rule: no atomic on a line that others use,
//! oftener than needed), bounded.
//!
//! **R2.** An increment frees nothing. Where an eviction in an increment would
//! be the last reference of the resident, what is left is *parked*, and released
//! at the next safe point: a decrement, a flush, the heartbeat. The list is
//! bounded; while it is full no resident with credits is evicted.
//!
//! | file | holds |
//! |---|---|
//! | [`slot`] | one place |
//! | [`rank`] | who keeps it, who wins it |
//! | [`owner`] | the owner's operations |
//! | [`upkeep`] | everyone else's |
//!
//! | field | touched by |
//! |---|---|
//! | `head.gate` | see [`super::gate`] |
//! | `head.byte_mask`, `head.slots` | never changed |
//! | `head.skip` | the owner; read by anyone for statistics |
//! | `slots[].object` | the owner inside; read by the owner outside, too |
//! | `slots[].word`, `parked` | whoever has the gate: the owner inside, or a revoker; outside, a hint |
//! | `ranks`, `counters`, `window` | the owner; `recycle`, without one; `window.gain`, whoever drains, too |
//! | `ages` | whoever holds the registry's lock |

mod owner;
mod rank;
mod slot;
mod upkeep;

use crossbeam_utils::CachePadded;

use super::counted::Address;
use super::gate::Gate;
use super::sync::{AtomicBool, AtomicU32, AtomicUsize, Ordering, PlainI64, PlainU32, PlainU64};
use super::totals::Counters;
use slot::SLOT_SHIFT;

pub use slot::{Slot, CREDITS, CREDIT_BITS, CREDIT_LIMIT, REFUND};
pub use upkeep::Census;

/// What the inline path of the C header reads. Layout shared with it.
#[repr(C)]
#[derive(Debug)]
pub struct Head {
    gate: Gate,
    byte_mask: usize,
    slots: *const Slot,
    /// Above zero: operations that still stand aside. Each operation takes one off,
    /// and what is below zero means nothing.
    skip: PlainI64,
}

/// How buffers are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Slots of a table: a power of two. Where there is one only, its pair is
    /// never used.
    pub slots: usize,
    /// log2 of the first acquire of a resident.
    pub first_batch: u32,
    /// log2 of the largest acquire, below 16.
    pub largest_batch: u32,
    /// Releases that may be parked.
    pub parked: usize,
}

impl Shape {
    /// 1,024 slots of 16 bytes; acquires of 8 to 4,096.
    pub const DEFAULT: Shape = Shape { slots: 1024, first_batch: 3, largest_batch: 12, parked: 64 };
    /// The smallest table: every object collides with every other.
    pub const FEWEST_SLOTS: usize = 1;
    /// The largest: with what belongs to it, within 32 KiB (rule R5).
    pub const MOST_SLOTS: usize = 1024;

    /// Memory of one buffer, all included.
    pub const fn bytes(&self) -> usize {
        let per_slot = size_of::<Slot>() + 2 * size_of::<PlainU32>();
        size_of::<Buffer>() + self.places() * per_slot + self.parked * size_of::<Parked>()
    }

    /// Slots in memory: always a pair.
    const fn places(&self) -> usize {
        if self.slots < 2 {
            2
        } else {
            self.slots
        }
    }
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Served by credits that were there.
    Hit,
    /// Credits have come into a slot that had none: the heartbeat must run.
    Installed,
    /// Left to the interpreter's own path.
    Passed,
}

/// References that could not be taken back in bulk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The object.
    pub object: Address,
    /// How many, one by one.
    pub count: u32,
}

/// A place in the parked list.
#[derive(Debug)]
struct Parked {
    object: AtomicUsize,
    count: AtomicU32,
}

/// How far down a product's upper bits go to be an offset into the table.
pub const HASH_SHIFT: u32 = 50;

/// 2^64 over the golden ratio: Knuth's multiplicative hash.
pub const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// One thread's buffer. The head comes first: C code has a pointer to it.
#[repr(C)]
#[derive(Debug)]
pub struct Buffer {
    head: CachePadded<Head>,
    slots: Box<[Slot]>,
    ranks: Box<[PlainU32]>,
    ages: Box<[PlainU32]>,
    parked: Box<[Parked]>,
    parked_len: AtomicUsize,
    counters: Counters,
    window: Window,
    looks: Looks,
    shape: Shape,
}

/// No number of credits that have come in.
const NEVER: u64 = u64::MAX;

/// What the heartbeat's last look found. With the registry's lock.
#[derive(Debug)]
struct Looks {
    /// Nothing, when so many credits had come in; or [`NEVER`].
    empty_at: PlainU64,
    /// Something cold.
    found_cold: AtomicBool,
}

/// What the owner remembers of its last thought on whether the table pays.
#[derive(Debug, Default)]
struct Window {
    gain: PlainU64,
    skip: PlainU32,
}

impl Window {
    /// A slot is drained: its word goes to the registry's totals, and the owner does not find
    /// the hits that it stood for. Nor were they there before, then.
    fn forget(&self, credits: u64, refunds: u64) {
        self.gain.fetch_add(credits.wrapping_sub(2 * refunds), Ordering::Relaxed);
    }
}

// SAFETY: `head.slots` points into `slots`, which the buffer owns; everything
// else is atomic.
unsafe impl Send for Buffer {}
// SAFETY: as above; who may change what is in the inventory.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// An empty buffer.
    pub fn new(shape: Shape) -> Box<Buffer> {
        assert!(shape.slots.is_power_of_two() && shape.largest_batch < 16);
        let slots: Box<[Slot]> = (0..shape.places()).map(|_| Slot::new()).collect();
        let zeros = || (0..shape.places()).map(|_| PlainU32::new(0)).collect();
        let head = Head {
            gate: Gate::new(),
            byte_mask: (shape.places() - 2) << SLOT_SHIFT,
            slots: slots.as_ptr(),
            skip: PlainI64::new(0),
        };
        Box::new(Buffer {
            head: CachePadded::new(head),
            slots,
            ranks: zeros(),
            ages: zeros(),
            parked: (0..shape.parked)
                .map(|_| Parked { object: AtomicUsize::new(0), count: AtomicU32::new(0) })
                .collect(),
            parked_len: AtomicUsize::new(0),
            counters: Counters::default(),
            window: Window::default(),
            looks: Looks { empty_at: PlainU64::new(NEVER), found_cold: AtomicBool::new(false) },
            shape,
        })
    }

    /// The handshake.
    #[inline(always)]
    pub fn gate(&self) -> &Gate {
        &self.head.gate
    }

    /// How this buffer was made.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The pair of `object`: where it begins, in bytes. The C header has the same
    /// expression; docs/HASHING.md has why it is this one.
    #[inline(always)]
    fn pair_offset(&self, object: Address) -> usize {
        ((object as u64).wrapping_mul(MIX) >> HASH_SHIFT) as usize & self.head.byte_mask
    }

    /// The same, in slots.
    #[inline(always)]
    fn pair(&self, object: Address) -> usize {
        self.pair_offset(object) >> SLOT_SHIFT
    }

    /// The slot for `object`, if either of its pair is. Without a branch, as in
    /// the C header: where the first is for another, the second.
    #[inline(always)]
    fn slot(&self, object: Address) -> &Slot {
        // SAFETY: the mask keeps pairs within the table, which is as long and lives as long
        // as the buffer.
        unsafe {
            let first = self.head.slots.byte_add(self.pair_offset(object));
            &*first.byte_add(zero_if_same((*first).object(), object, size_of::<Slot>()))
        }
    }
}

/// 0 where `found` is `object`, else `distance`: by a conditional move, as in the C header.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn zero_if_same(found: Address, object: Address, distance: usize) -> usize {
    let mut chosen = 0_usize;
    // SAFETY: compares and moves registers, nothing else.
    unsafe {
        std::arch::asm!(
            "cmp {found}, {object}",
            "cmovne {chosen}, {distance}",
            found = in(reg) found,
            object = in(reg) object,
            distance = in(reg) distance,
            chosen = inout(reg) chosen,
            options(pure, nomem, nostack),
        );
    }
    chosen
}

/// 0 where `found` is `object`, else `distance`.
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline(always)]
fn zero_if_same(found: Address, object: Address, distance: usize) -> usize {
    usize::from(found != object) * distance
}

/// Where the C header expects things. The core does not know the header:
/// whoever includes it compares.
#[derive(Debug)]
pub struct Layout {
    /// In a slot.
    pub slot_object: usize,
    /// In a slot.
    pub slot_word: usize,
    /// In a buffer.
    pub busy: usize,
    /// In a buffer.
    pub attention: usize,
    /// In a buffer.
    pub byte_mask: usize,
    /// In a buffer.
    pub slots: usize,
    /// In a buffer.
    pub skip: usize,
}

/// The layout that the core has.
#[cfg(not(loom))]
pub const LAYOUT: Layout = Layout {
    slot_object: slot::OFFSETS.0,
    slot_word: slot::OFFSETS.1,
    busy: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, gate) + super::gate::BUSY_OFFSET,
    attention: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, gate) + super::gate::ATTENTION_OFFSET,
    byte_mask: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, byte_mask),
    slots: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, slots),
    skip: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, skip),
};
