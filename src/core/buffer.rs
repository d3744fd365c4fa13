//! One thread's buffer: a direct-mapped table of credits.
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
//! **A place is earned.** A miss on an empty slot moves in at once. A miss on a
//! slot with a resident is a *challenge*; only [`WINS`] challenges in a row by
//! one object, the resident unused meanwhile, evict. Otherwise the operation
//! takes the interpreter's own path, so that two hot objects with one slot, or a
//! working set far larger than the table, cost what they cost without refbuf.
//!
//! **Standing aside.** Where hardly anything hits, even looking costs: it keeps
//! the processor from running ahead to the next object. So after each
//! [`WINDOW`] misses the owner compares: with fewer than one hit for
//! [`MISSES_PER_HIT`] misses, it skips the table for a while (`head.skip`
//! operations, longer each time in a row), then looks again.
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
//! Inventory:
//!
//! | field | touched by |
//! |---|---|
//! | `head.gate` | see [`super::gate`] |
//! | `head.byte_mask`, `head.slots` | never changed |
//! | `head.skip` | the owner; read by anyone for statistics |
//! | `slots[].object` | the owner inside; read by the owner outside, too |
//! | `slots[].word`, `parked` | whoever has the gate: the owner inside, or a revoker; outside, a hint |
//! | `ranks`, `counters`, `window` | the owner |
//! | `ages` | whoever holds the registry's lock |

use crossbeam_utils::CachePadded;

use super::counted::{Address, Counted};
use super::gate::Gate;
use super::sync::{AtomicU32, AtomicU64, AtomicUsize, Ordering, PlainU32, PlainU64};
use super::totals::{Counters, Totals};

/// Low bits of a slot's word that hold its credits.
pub const CREDIT_BITS: u32 = 24;
/// Mask of the credits in a word.
pub const CREDITS: u64 = (1 << CREDIT_BITS) - 1;
/// Credits at which a slot is full.
pub const CREDIT_LIMIT: u64 = 1 << (CREDIT_BITS - 1);
/// What a refund adds to a word: a credit, and one refund seen.
pub const REFUND: u64 = (1 << CREDIT_BITS) | 1;

/// Challenges in a row that win a slot: more than those of seven pairs, so that
/// an object that is merely wanted now and then does not evict a wanted one.
/// Fewer under loom, whose models must stay small.
const WINS: u32 = if cfg!(loom) { 3 } else { 15 };

/// Misses between two thoughts on whether the table pays. A power of two.
const WINDOW: u64 = 1024;
/// With fewer hits than one for so many misses, it does not. Hits that only make
/// up for the credits that came in do not count.
const MISSES_PER_HIT: u64 = 8;
/// Operations that skip the table, the first time and at the most.
const SKIP: (u32, u32) = (1 << 17, 1 << 20);

/// Looks that must find a slot unchanged before it is cold.
const COLD_AFTER: u32 = 2;
/// Bits of an age that count them.
const LOOKS_MASK: u32 = 3;

/// log2 of the size of a slot, in bytes.
const SLOT_SHIFT: u32 = 4;

/// One place in the table. Layout shared with the C header.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Slot {
    object: AtomicUsize,
    word: AtomicU64,
}

/// What the inline path of the C header reads. Layout shared with it.
#[repr(C)]
#[derive(Debug)]
pub struct Head {
    gate: Gate,
    byte_mask: usize,
    slots: *const Slot,
    skip: PlainU32,
}

/// How buffers are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Slots of a table: a power of two.
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
    pub fn bytes(&self) -> usize {
        let per_slot = size_of::<Slot>() + 2 * size_of::<PlainU32>();
        size_of::<Buffer>() + self.slots * per_slot + self.parked * size_of::<Parked>()
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

/// Who challenges a slot's resident, and how it stands. Packed in 32 bits.
#[derive(Clone, Copy)]
struct Rank {
    /// Tag of the last object that missed here.
    challenger: u16,
    /// Digest of the word at that miss: tells whether the resident was used since.
    seen: u8,
    /// Challenges in a row.
    wins: u32,
    /// log2 of the resident's last acquire.
    batch: u32,
}

impl Rank {
    fn unpack(bits: u32) -> Rank {
        Rank { challenger: bits as u16, seen: (bits >> 16) as u8, wins: (bits >> 24) & 15, batch: bits >> 28 }
    }

    fn pack(self) -> u32 {
        u32::from(self.challenger) | u32::from(self.seen) << 16 | self.wins << 24 | self.batch << 28
    }
}

/// How far down a product's upper bits go to be an offset into the table.
pub const HASH_SHIFT: u32 = 50;

/// 2^64 over the golden ratio: Knuth's multiplicative hash.
pub const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

/// Mixes all bits of a slot into the upper ones.
fn digest(object: Address, word: u64) -> u64 {
    (word ^ (object as u64).rotate_left(32)).wrapping_mul(MIX)
}

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
    shape: Shape,
}

/// What the owner remembers of its last thought on whether the table pays.
#[derive(Debug, Default)]
struct Window {
    gain: PlainU64,
    skip: PlainU32,
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
        let slots: Box<[Slot]> =
            (0..shape.slots).map(|_| Slot { object: AtomicUsize::new(0), word: AtomicU64::new(0) }).collect();
        let zeros = || (0..shape.slots).map(|_| PlainU32::new(0)).collect();
        let head = Head {
            gate: Gate::new(),
            byte_mask: (shape.slots - 1) << SLOT_SHIFT,
            slots: slots.as_ptr(),
            skip: PlainU32::new(0),
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

    /// The place of `object`. The C header has the same expression; docs/HASHING.md has
    /// why it is this one.
    #[inline(always)]
    fn index(&self, object: Address) -> usize {
        (((object as u64).wrapping_mul(MIX) >> HASH_SHIFT) as usize & self.head.byte_mask) >> SLOT_SHIFT
    }

    #[inline(always)]
    fn slot(&self, object: Address) -> &Slot {
        // SAFETY: the mask keeps the index within the table, which is as long.
        unsafe { self.slots.get_unchecked(self.index(object)) }
    }

    // -- the owner's operations ----------------------------------------------

    /// Whether this operation stands aside: the caller takes the interpreter's
    /// own path. By the owner.
    #[inline(always)]
    pub fn skips(&self) -> bool {
        let skip = self.head.skip.load(Ordering::Relaxed);
        if skip == 0 {
            return false;
        }
        self.head.skip.store(skip - 1, Ordering::Relaxed);
        true
    }

    /// Increment, where a credit is at hand. By the owner.
    #[inline(always)]
    pub fn spend(&self, object: Address) -> bool {
        let slot = self.slot(object);
        if slot.object() != object || !self.gate().enter() {
            return false;
        }
        let hit = slot.spend(object);
        self.gate().leave();
        hit
    }

    /// Decrement, where the object has credits here. By the owner.
    #[inline(always)]
    pub fn refund(&self, object: Address) -> bool {
        let slot = self.slot(object);
        if slot.object() != object || !self.gate().enter() {
            return false;
        }
        let hit = slot.refund(object);
        self.gate().leave();
        hit
    }

    /// First half of a miss: whether the slot has another resident, and
    /// `object` has not earned its place. Then the caller takes the
    /// interpreter's own path; the miss is counted. By the owner, outside: what
    /// it reads of the slot is a hint.
    #[inline]
    pub fn denies(&self, object: Address) -> bool {
        let index = self.index(object);
        let slot = &self.slots[index];
        let word = slot.word();
        if word & CREDITS == 0 || slot.object() == object || self.challenge(index, object, word) {
            return false;
        }
        self.count_miss();
        true
    }

    /// Second half of a miss, for an increment. Counts the reference in any
    /// case. `admit` says whether credits may be acquired now.
    ///
    /// # Safety
    ///
    /// By the owner, attached; `object` is alive.
    #[cold]
    #[inline(never)]
    pub unsafe fn increment_missed<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let mut outcome = Outcome::Passed;
        if self.gate().enter() {
            // SAFETY: the caller's promises; we are inside.
            outcome = unsafe { self.increment_inside::<O>(object, admit) };
            self.gate().leave();
        }
        if outcome == Outcome::Passed {
            self.count_miss();
            // SAFETY: the caller's promises.
            unsafe { O::add(object, 1) };
        }
        outcome
    }

    /// # Safety
    ///
    /// As for `increment_missed`, inside the gate.
    unsafe fn increment_inside<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let slot = self.slot(object);
        if slot.spend(object) {
            return Outcome::Hit;
        }
        // SAFETY: the caller's promises.
        let Some(batch) = (unsafe { self.make_room::<O>(object, admit) }) else {
            return Outcome::Passed;
        };
        let credits = 1 << batch;
        self.counters.acquires.add(1);
        self.counters.atomics.add(1);
        self.counters.credits_in.add(credits - 1);
        // SAFETY: the caller's promises. One of these references is the caller's.
        unsafe { O::add(object, credits as u32) };
        slot.put(object, credits - 1);
        Outcome::Installed
    }

    /// Second half of a miss, for a decrement. Where it says `Passed`, the caller
    /// still has the reference, and must release it.
    ///
    /// # Safety
    ///
    /// By the owner, attached; the caller owns a reference to `object`, and
    /// loses it unless the outcome is `Passed`.
    #[cold]
    #[inline(never)]
    pub unsafe fn decrement_missed<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let mut outcome = Outcome::Passed;
        if self.gate().enter() {
            // SAFETY: the caller's promises; we are inside.
            outcome = unsafe { self.decrement_inside::<O>(object, admit) };
            self.gate().leave();
        }
        if outcome == Outcome::Passed {
            self.count_miss();
        }
        outcome
    }

    /// # Safety
    ///
    /// As for `decrement_missed`, inside the gate.
    unsafe fn decrement_inside<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Outcome {
        let slot = self.slot(object);
        if slot.refund(object) {
            return Outcome::Hit;
        }
        if slot.holds(object) {
            // SAFETY: the slot's credits are ours to give back.
            unsafe { self.thin::<O>(slot) };
            return if slot.refund(object) { Outcome::Hit } else { Outcome::Passed };
        }
        // R7: what may be the last reference is not kept.
        // SAFETY: the caller owns a reference.
        if !unsafe { O::has_others(object) } {
            return Outcome::Passed;
        }
        // SAFETY: the caller's promises.
        if unsafe { self.make_room::<O>(object, admit) }.is_none() {
            return Outcome::Passed;
        }
        self.counters.take_ins.add(1);
        self.counters.credits_in.add(1);
        slot.put(object, 1);
        Outcome::Installed
    }

    /// Makes `object`, which has earned it, the resident of its slot, without
    /// credits, and says log2 of how many it should acquire; or leaves all as it
    /// is.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached.
    unsafe fn make_room<O: Counted>(&self, object: Address, admit: impl FnOnce() -> bool) -> Option<u32> {
        if !admit() {
            return None;
        }
        let index = self.index(object);
        let slot = &self.slots[index];
        let resident = slot.object();
        // SAFETY: the slot's credits are ours to give back.
        if slot.credits() != 0 && !unsafe { self.evict::<O>(slot) } {
            return None;
        }
        let mut rank = Rank::unpack(self.ranks[index].load(Ordering::Relaxed));
        rank.batch = if resident == object {
            (rank.batch + 1).clamp(self.shape.first_batch, self.shape.largest_batch)
        } else {
            self.counters.refunds.add(slot.clear());
            self.shape.first_batch
        };
        rank.wins = 0;
        self.ranks[index].store(rank.pack(), Ordering::Relaxed);
        Some(rank.batch)
    }

    /// Counts a miss of `object` against the resident; true if it wins.
    #[inline]
    fn challenge(&self, index: usize, object: Address, word: u64) -> bool {
        let mut rank = Rank::unpack(self.ranks[index].load(Ordering::Relaxed));
        let tag = (object >> SLOT_SHIFT) as u16 ^ (object >> 20) as u16;
        let seen = (word.wrapping_mul(MIX) >> 56) as u8;
        let again = rank.challenger == tag && rank.seen == seen;
        rank.wins = if again { (rank.wins + 1).min(WINS) } else { 1 };
        rank.challenger = tag;
        rank.seen = seen;
        self.ranks[index].store(rank.pack(), Ordering::Relaxed);
        rank.wins >= WINS
    }

    /// Settles a resident to make room; parks what would be a release. False,
    /// and nothing done, where there is no place to park.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached.
    unsafe fn evict<O: Counted>(&self, slot: &Slot) -> bool {
        let parked = self.parked_len.load(Ordering::Relaxed);
        if parked == self.parked.len() {
            return false;
        }
        let (object, credits) = (slot.object(), slot.credits());
        self.counters.evictions.add(1);
        self.counters.settles.add(1);
        self.counters.atomics.add(1);
        self.counters.credits_out.add(credits);
        // SAFETY: these references are the slot's; it is cleared below.
        let left = unsafe { O::take(object, credits as u32) };
        self.counters.refunds.add(slot.clear());
        if left > 0 {
            self.counters.parked.add(u64::from(left));
            self.parked[parked].object.store(object, Ordering::Relaxed);
            self.parked[parked].count.store(left, Ordering::Relaxed);
            self.parked_len.store(parked + 1, Ordering::Relaxed);
            self.gate().set_parked(true);
        }
        true
    }

    /// Gives back half of a full slot's credits.
    ///
    /// # Safety
    ///
    /// By the owner, inside, attached.
    unsafe fn thin<O: Counted>(&self, slot: &Slot) {
        let surplus = CREDIT_LIMIT / 2;
        // SAFETY: the slot holds more than that; what is left stays in it.
        let left = unsafe { O::take(slot.object(), surplus as u32) };
        let taken = surplus - u64::from(left);
        self.counters.atomics.add(1);
        self.counters.credits_out.add(taken);
        slot.store(slot.word() - taken);
    }

    /// One parked release, for the owner to do now. At a safe point.
    pub fn unpark(&self) -> Option<Address> {
        if !self.gate().enter() {
            return None;
        }
        let last = self.parked_len.load(Ordering::Relaxed).checked_sub(1);
        let object = last.map(|last| {
            let parked = &self.parked[last];
            let count = parked.count.load(Ordering::Relaxed) - 1;
            parked.count.store(count, Ordering::Relaxed);
            if count == 0 {
                self.parked_len.store(last, Ordering::Relaxed);
            }
            parked.object.load(Ordering::Relaxed)
        });
        if self.parked_len.load(Ordering::Relaxed) == 0 {
            self.gate().set_parked(false);
        }
        self.gate().leave();
        object
    }

    /// Counts an operation that takes the interpreter's own path, which is one
    /// atomic operation. By the owner.
    #[inline]
    fn count_miss(&self) {
        self.counters.misses.add(1);
        if self.counters.misses.get() % WINDOW == 0 {
            self.consider_skipping();
        }
    }

    /// Whether the table has paid since the last thought; if not, stands aside.
    #[cold]
    #[inline(never)]
    fn consider_skipping(&self) {
        let totals = self.totals();
        // Credits that come in cost one atomic operation, and one to go back:
        // what they save, a pair without a table would have cost.
        let gain = totals.hits().wrapping_sub(2 * (totals.acquires + totals.take_ins));
        let since = gain.wrapping_sub(self.window.gain.swap(gain, Ordering::Relaxed)) as i64;
        if since >= (WINDOW / MISSES_PER_HIT) as i64 {
            self.window.skip.store(0, Ordering::Relaxed);
            return;
        }
        let longer = self.window.skip.load(Ordering::Relaxed).saturating_mul(2).clamp(SKIP.0, SKIP.1);
        self.window.skip.store(longer, Ordering::Relaxed);
        self.head.skip.store(longer, Ordering::Relaxed);
        // Counted now; what is not yet done is taken off whenever they are read.
        self.counters.misses.add(u64::from(longer));
    }

    // -- for whoever has the table to itself ----------------------------------

    /// Settles all slots, or the cold ones, and the parked list. What cannot be
    /// taken back in bulk is appended to `leftovers`.
    ///
    /// # Safety
    ///
    /// Attached, with the registry's lock, and either revoked or without a
    /// running owner.
    pub unsafe fn drain<O: Counted>(&self, only_cold: bool, leftovers: &mut Vec<Leftover>, totals: &mut Totals) {
        for (index, slot) in self.slots.iter().enumerate() {
            let credits = slot.credits();
            if credits == 0 || (only_cold && !self.is_cold(index)) {
                continue;
            }
            let object = slot.object();
            // SAFETY: these references are the slot's; it is cleared below.
            let left = unsafe { O::take(object, credits as u32) };
            if left > 0 {
                leftovers.push(Leftover { object, count: left });
            }
            totals.refunds += slot.clear();
            totals.settles += 1;
            totals.atomics += 1;
            totals.credits_out += credits;
        }
        for parked in &self.parked[..self.parked_len.load(Ordering::Relaxed)] {
            let object = parked.object.load(Ordering::Relaxed);
            leftovers.push(Leftover { object, count: parked.count.load(Ordering::Relaxed) });
        }
        self.parked_len.store(0, Ordering::Relaxed);
        self.gate().set_parked(false);
    }

    /// References that this buffer holds on `object`. Exact for whoever has the
    /// table to itself.
    pub fn credits_of(&self, object: Address) -> u64 {
        let slot = self.slot(object);
        let credits = if slot.object() == object { slot.credits() } else { 0 };
        let parked = &self.parked[..self.parked_len.load(Ordering::Relaxed)];
        let parked: u32 = parked
            .iter()
            .filter(|parked| parked.object.load(Ordering::Relaxed) == object)
            .map(|parked| parked.count.load(Ordering::Relaxed))
            .sum();
        credits + u64::from(parked)
    }

    // -- for the heartbeat ----------------------------------------------------

    /// Looks at every slot, without the gate: whether any is cold now, and
    /// whether any holds anything. A slot is cold when two looks have found it as
    /// a look before them did. With the registry's lock.
    pub fn census(&self) -> Census {
        let mut census = Census { cold: false, occupied: self.gate().is_parked() };
        // What is parked waits for the owner's next safe point at the longest
        // until this beat.
        census.cold |= census.occupied;
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.credits() == 0 {
                continue;
            }
            census.occupied = true;
            let now = self.age_now(index);
            let age = self.ages[index].load(Ordering::Relaxed);
            let unchanged = age & !LOOKS_MASK == now;
            let age = if unchanged { now | ((age & LOOKS_MASK) + 1).min(COLD_AFTER) } else { now };
            census.cold |= age & LOOKS_MASK == COLD_AFTER;
            self.ages[index].store(age, Ordering::Relaxed);
        }
        census
    }

    /// Whether a settling of the cold would find anything here. With the
    /// registry's lock.
    pub fn is_due(&self) -> bool {
        let cold = |index: usize| self.slots[index].credits() != 0 && self.is_cold(index);
        self.gate().is_parked() || (0..self.slots.len()).any(cold)
    }

    /// Whether the slot was found cold, and has not changed since.
    fn is_cold(&self, index: usize) -> bool {
        self.ages[index].load(Ordering::Relaxed) == self.age_now(index) | COLD_AFTER
    }

    /// Digest of a slot; the low bits are for the count of looks.
    fn age_now(&self, index: usize) -> u32 {
        let slot = &self.slots[index];
        (digest(slot.object(), slot.word()) >> 32) as u32 & !LOOKS_MASK
    }

    // -- accounting -----------------------------------------------------------

    /// Sums so far. Exact while the owner is not counting.
    pub fn totals(&self) -> Totals {
        let mut totals = self.counters.sums();
        totals.misses -= u64::from(self.head.skip.load(Ordering::Relaxed));
        totals.atomics += totals.misses;
        for slot in &self.slots {
            let word = slot.word();
            totals.credits += word & CREDITS;
            totals.refunds += word >> CREDIT_BITS;
        }
        totals
    }

    /// Makes an orphan ready for its next owner; returns its sums. Without a
    /// running owner, drained.
    pub fn recycle(&self) -> Totals {
        let totals = self.totals();
        debug_assert_eq!(totals.credits, 0);
        self.counters.reset();
        self.head.skip.store(0, Ordering::Relaxed);
        self.window.gain.store(0, Ordering::Relaxed);
        self.window.skip.store(0, Ordering::Relaxed);
        for slot in &self.slots {
            slot.clear();
            slot.object.store(0, Ordering::Relaxed);
        }
        for rank in &self.ranks {
            rank.store(0, Ordering::Relaxed);
        }
        totals
    }
}

/// What a look at a buffer found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Something to settle.
    pub cold: bool,
    /// Something held at all.
    pub occupied: bool,
}

/// All accesses are relaxed: the gate orders them between threads.
impl Slot {
    #[inline(always)]
    fn object(&self) -> Address {
        self.object.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn credits(&self) -> u64 {
        self.word() & CREDITS
    }

    #[inline(always)]
    fn store(&self, word: u64) {
        self.word.store(word, Ordering::Relaxed);
    }

    #[inline(always)]
    fn holds(&self, object: Address) -> bool {
        self.object() == object && self.credits() != 0
    }

    #[inline(always)]
    fn spend(&self, object: Address) -> bool {
        let word = self.word();
        let hit = self.object() == object && word & CREDITS != 0;
        if hit {
            self.store(word - 1);
        }
        hit
    }

    #[inline(always)]
    fn refund(&self, object: Address) -> bool {
        let word = self.word();
        let credits = word & CREDITS;
        let hit = self.object() == object && credits != 0 && credits < CREDIT_LIMIT;
        if hit {
            self.store(word.wrapping_add(REFUND));
        }
        hit
    }

    /// Puts credits into a slot that has none; keeps the refunds seen.
    fn put(&self, object: Address, credits: u64) {
        self.object.store(object, Ordering::Relaxed);
        self.store(self.word() & !CREDITS | credits);
    }

    /// Empties the slot; returns the refunds it saw. It still names its object,
    /// so that an object that comes back goes on with its batch.
    fn clear(&self) -> u64 {
        let refunds = self.word() >> CREDIT_BITS;
        self.store(0);
        refunds
    }
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
    slot_object: std::mem::offset_of!(Slot, object),
    slot_word: std::mem::offset_of!(Slot, word),
    busy: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, gate) + super::gate::BUSY_OFFSET,
    attention: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, gate) + super::gate::ATTENTION_OFFSET,
    byte_mask: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, byte_mask),
    slots: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, slots),
    skip: std::mem::offset_of!(Buffer, head) + std::mem::offset_of!(Head, skip),
};
