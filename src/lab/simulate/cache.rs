//! Private caches with an invalidation protocol (MESI), one for each thread, over
//! lines of 64 bytes.
//!
//! | a thread's state of a line | other caches | reads | writes |
//! |---|---|---|---|
//! | modified | have nothing | hit | hit |
//! | exclusive | have nothing | hit | hit, and it is modified |
//! | shared | may have it, shared | hit | takes it from the others |
//! | invalid | anything | gets it | gets it, and takes it from the others |
//!
//! A line that has to come from another cache, or be taken from one, is a
//! *transfer*: a coherence miss. One that no private cache has is a *fill*. A
//! transfer of a line waits for the one before: `free_at`.
//!
//! Caches are set-associative. Which line goes is by age (first in, first out),
//! so that a hit changes nothing here.

/// A line, numbered from 0.
pub type Line = u32;

/// Simulated threads, at the most: one bit each in a line.
pub const MOST_THREADS: usize = 256;
/// log2 of the bytes of a line.
pub const LINE_SHIFT: u32 = 6;
/// Lines of a set.
const WAYS: usize = 8;
const NOBODY: u16 = u16::MAX;
const EMPTY: u32 = u32::MAX;

/// What is done to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A load.
    Read,
    /// A plain store, or a load and a store.
    Write,
    /// One locked instruction.
    Atomic,
    /// A load, then a locked instruction that needs what was loaded.
    Swap,
}

impl Use {
    /// Whether everything behind waits for it.
    pub fn is_atomic(self) -> bool {
        matches!(self, Use::Atomic | Use::Swap)
    }
}

/// Where a line is, for a thread that wants to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In its cache, and it may do with it what it wants to.
    Here,
    /// In another cache, or also in another, which must let go of it.
    Elsewhere,
    /// In no private cache.
    Nowhere,
}

/// A thread's state of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The only copy, and memory is out of date.
    Modified,
    /// The only copy.
    Exclusive,
    /// Others may have one.
    Shared,
    /// None.
    Invalid,
}

#[derive(Clone, Debug)]
struct Copies {
    /// When the next transfer may begin, in picoseconds.
    free_at: u64,
    /// When its last use ended.
    used_at: u64,
    /// Who has a copy, a bit each.
    holders: [u64; MOST_THREADS / 64],
    /// Who has the only copy, if it knows so.
    only: u16,
    modified: bool,
}

impl Copies {
    fn holds(&self, thread: usize) -> bool {
        self.holders[thread / 64] >> (thread % 64) & 1 != 0
    }

    fn is_held(&self) -> bool {
        self.holders.iter().any(|word| *word != 0)
    }

    /// Whether someone besides `thread` has a copy.
    fn is_held_by_others(&self, thread: usize) -> bool {
        let others = |(index, word): (usize, &u64)| {
            let own = if index == thread / 64 { 1 << (thread % 64) } else { 0 };
            word & !own != 0
        };
        self.holders.iter().enumerate().any(others)
    }
}

/// All private caches.
#[derive(Debug)]
pub struct Caches {
    lines: Vec<Copies>,
    /// For each thread its sets; none where all lines fit.
    resident: Vec<Vec<u32>>,
    /// The oldest way of each set.
    oldest: Vec<Vec<u8>>,
    sets: usize,
}

impl Caches {
    /// Empty caches of so many threads and bytes each, over so many lines.
    pub fn new(threads: usize, lines: usize, bytes: usize) -> Caches {
        assert!(threads <= MOST_THREADS);
        let copies = Copies { free_at: 0, used_at: 0, holders: [0; MOST_THREADS / 64], only: NOBODY, modified: false };
        let room = (bytes >> LINE_SHIFT).max(WAYS);
        let sets = 1 << (room / WAYS).ilog2();
        let bounded = lines > room;
        let each = |size: usize| if bounded { size } else { 0 };
        Caches {
            lines: vec![copies; lines],
            resident: vec![vec![EMPTY; each(sets * WAYS)]; threads],
            oldest: vec![vec![0; each(sets)]; threads],
            sets,
        }
    }

    /// A thread's state of a line.
    pub fn state(&self, thread: usize, line: Line) -> State {
        let copies = &self.lines[line as usize];
        match (copies.holds(thread), usize::from(copies.only) == thread) {
            (false, _) => State::Invalid,
            (true, false) => State::Shared,
            (true, true) if copies.modified => State::Modified,
            (true, true) => State::Exclusive,
        }
    }

    /// Where the line is for this use. Changes nothing.
    #[inline]
    pub fn find(&self, thread: usize, line: Line, how: Use) -> Place {
        let copies = &self.lines[line as usize];
        if usize::from(copies.only) == thread || (how == Use::Read && copies.holds(thread)) {
            Place::Here
        } else if copies.is_held_by_others(thread) {
            Place::Elsewhere
        } else if copies.holds(thread) {
            Place::Here
        } else {
            Place::Nowhere
        }
    }

    /// When a transfer of the line may begin.
    pub fn free_at(&self, line: Line) -> u64 {
        self.lines[line as usize].free_at
    }

    /// No other transfer of the line begins before `time`.
    pub fn keep_until(&mut self, line: Line, time: u64) {
        let free_at = &mut self.lines[line as usize].free_at;
        *free_at = time.max(*free_at);
    }

    /// When the last use of the line ended.
    pub fn used_at(&self, line: Line) -> u64 {
        self.lines[line as usize].used_at
    }

    /// A use of the line ends then.
    pub fn use_until(&mut self, line: Line, time: u64) {
        self.lines[line as usize].used_at = time;
    }

    /// The thread uses the line; it is in its cache afterwards.
    #[inline]
    pub fn access(&mut self, thread: usize, line: Line, how: Use) {
        let copies = &mut self.lines[line as usize];
        let had = copies.holds(thread);
        if how != Use::Read {
            copies.holders = [0; MOST_THREADS / 64];
            copies.only = thread as u16;
            copies.modified = true;
        } else if !had {
            copies.only = if copies.is_held() { NOBODY } else { thread as u16 };
            copies.modified = false;
        }
        copies.holders[thread / 64] |= 1 << (thread % 64);
        if !had && !self.resident[thread].is_empty() {
            self.make_resident(thread, line);
        }
    }

    /// Gives the line a way of its set, and drops whose that was.
    fn make_resident(&mut self, thread: usize, line: Line) {
        let set = line as usize % self.sets;
        let ways = &mut self.resident[thread][set * WAYS..(set + 1) * WAYS];
        // It was here, and another thread took it.
        if ways.contains(&line) {
            return;
        }
        let oldest = &mut self.oldest[thread][set];
        let dropped = std::mem::replace(&mut ways[usize::from(*oldest)], line);
        *oldest = (*oldest + 1) % WAYS as u8;
        if dropped != EMPTY {
            let copies = &mut self.lines[dropped as usize];
            copies.holders[thread / 64] &= !(1 << (thread % 64));
            if usize::from(copies.only) == thread {
                copies.only = NOBODY;
                copies.modified = false;
            }
        }
    }
}
