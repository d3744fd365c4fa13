//! What the counts of a program are written down in, where trampolines record.
//!
//! ```text
//! open    from now on counts are noted; the caller is the trace's first thread
//! note    wherever the interpreter counts: no lock, no allocator, nothing of Python's
//! close   no more is noted
//! trace   objects get their numbers, and what may have been none is left out
//! ```
//!
//! Each thread writes to memory of its own, of fixed size, which it gets from the system
//! at its first count; what finds no room is counted, not kept. The memory is found by a
//! thread-local without a destructor, and stays when the thread has ended.
//!
//! An object is known by its address and its owner's thread id. The id of a thread that
//! has ended is soon another's; CPython takes that one for the owner from then on, and so
//! does this. Where the owner is not known, as of a merged object, or is another's at an
//! address, see [`assemble`].

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::OnceLock;
use std::time::Instant;

use super::trampoline::tag;
use super::trial::thread_pointer;
use crate::lab::trace::{Error, Event, Object, Thread, Trace, MOST_THREADS};

/// Where an object has its owner's thread id: checked at import.
pub const OWNER: usize = 0;

/// One count.
#[derive(Clone, Copy, Debug)]
struct Note {
    /// The object's address, with a tag.
    object: usize,
    /// Its owner's thread id; 0 where it has none, or may not be looked at.
    owner_id: usize,
    /// The number of that thread's recording, plus 1; 0 where it has none.
    owner: u32,
}

/// One thread's memory: this, and behind it the notes.
struct Recording {
    number: u32,
    thread_id: usize,
    start_ns: u64,
    room: usize,
    /// Written by the thread alone, as is what follows.
    count: AtomicUsize,
    lost: AtomicU64,
    found: Cell<Found>,
    /// The one that was made before.
    before: *const Recording,
}

/// Whose thread id something was, and as of which last recording.
#[derive(Clone, Copy)]
struct Found {
    thread_id: usize,
    owner: u32,
    as_of: *const Recording,
}

static OPEN: AtomicBool = AtomicBool::new(false);
static ROOM: AtomicUsize = AtomicUsize::new(0);
static START: OnceLock<Instant> = OnceLock::new();
/// The recording that was made last.
static LAST: AtomicPtr<Recording> = AtomicPtr::new(ptr::null_mut());
/// Counts of threads for which there was no memory, or which are too many for a trace.
static UNSEEN: AtomicU64 = AtomicU64::new(0);

/// In a thread that has no recording, and gets none.
const NONE: *const Recording = ptr::without_provenance(1);

thread_local! {
    static HERE: Cell<*const Recording> = const { Cell::new(ptr::null()) };
}

/// Begins: room for so many counts of each thread. Once in a process; false if it has been
/// before.
pub fn open(room: usize) -> bool {
    if START.set(Instant::now()).is_err() {
        return false;
    }
    ROOM.store(room, Ordering::Relaxed);
    here();
    OPEN.store(true, Ordering::Release);
    true
}

/// Notes no more. What another thread is noting just now may be in the trace, or not.
pub fn close() {
    OPEN.store(false, Ordering::Release);
}

/// Counts that are in no thread's recording.
pub fn unseen() -> u64 {
    UNSEEN.load(Ordering::Relaxed)
}

/// What trampolines call: the address of an object with a [`tag`]. Leaves errno as it was.
///
/// # Safety
///
/// Where the tag says neither that it may be gone nor that it may be none, the object is
/// alive.
pub unsafe extern "C" fn note(object: usize) {
    if !OPEN.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.read() };
    match here() {
        // SAFETY: the caller's promise.
        Some(recording) => unsafe { recording.note(object) },
        None => {
            UNSEEN.fetch_add(1, Ordering::Relaxed);
        }
    }
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

/// The calling thread's recording, made if need be.
fn here() -> Option<&'static Recording> {
    HERE.with(|here| {
        if here.get().is_null() {
            here.set(Recording::new().map_or(NONE, |new| new.as_ptr()));
        }
        // SAFETY: recordings are never given back.
        (here.get() != NONE).then(|| unsafe { &*here.get() })
    })
}

impl Recording {
    /// For the calling thread, among the others.
    fn new() -> Option<NonNull<Recording>> {
        let room = ROOM.load(Ordering::Relaxed);
        let bytes = size_of::<Recording>() + room * size_of::<Note>();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: asks for new pages.
        let got = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return None;
        }
        let place: NonNull<Recording> = NonNull::new(got)?.cast();
        let mut before = LAST.load(Ordering::Acquire);
        loop {
            // SAFETY: recordings are never given back.
            let number = unsafe { before.as_ref() }.map_or(0, |before| before.number + 1);
            if number as usize >= MOST_THREADS {
                // SAFETY: the pages from above, which nobody knows.
                unsafe { libc::munmap(got, bytes) };
                return None;
            }
            let new = Recording {
                number,
                thread_id: thread_pointer(),
                start_ns: START.get().map_or(0, |start| start.elapsed().as_nanos() as u64),
                room,
                count: AtomicUsize::new(0),
                lost: AtomicU64::new(0),
                found: Cell::new(Found { thread_id: 0, owner: 0, as_of: ptr::null() }),
                before,
            };
            // SAFETY: pages of our own, large enough.
            unsafe { place.write(new) };
            match LAST.compare_exchange(before, place.as_ptr(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(place),
                Err(now) => before = now,
            }
        }
    }

    fn notes(&self) -> *mut Note {
        ptr::from_ref(self).wrapping_add(1).cast::<Note>().cast_mut()
    }

    /// # Safety
    ///
    /// As for [`note`]; this is the calling thread's.
    unsafe fn note(&self, object: usize) {
        let count = self.count.load(Ordering::Relaxed);
        if count == self.room {
            self.lost.store(self.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            return;
        }
        let owner_id = if object & (tag::CANDIDATE | tag::GONE) != 0 {
            0
        } else {
            // SAFETY: an object that is alive; CPython accesses the field atomically.
            unsafe { AtomicUsize::from_ptr(((object & !tag::BITS) + OWNER) as *mut usize) }.load(Ordering::Relaxed)
        };
        let note = Note { object, owner_id, owner: self.owner(owner_id) };
        // SAFETY: within the memory, and nobody reads it before the count says so.
        unsafe { self.notes().add(count).write(note) };
        self.count.store(count + 1, Ordering::Release);
    }

    /// The number of the last recording by a thread of that id, plus 1; 0 where there is none.
    fn owner(&self, thread_id: usize) -> u32 {
        if thread_id == 0 {
            return 0;
        }
        let as_of: *const Recording = LAST.load(Ordering::Acquire);
        let found = self.found.get();
        if found.thread_id == thread_id && found.as_of == as_of {
            return found.owner;
        }
        let owner = since(as_of).find(|recording| recording.thread_id == thread_id);
        let owner = owner.map_or(0, |recording| recording.number + 1);
        self.found.set(Found { thread_id, owner, as_of });
        owner
    }
}

/// All recordings up to the last, from there back.
fn since(last: *const Recording) -> impl Iterator<Item = &'static Recording> {
    // SAFETY: recordings are never given back, nor changed but for atomic fields and what
    // only their threads use.
    let next = |at: *const Recording| unsafe { at.as_ref() };
    std::iter::successors(next(last), move |recording| next(recording.before))
}

/// What a thread has noted.
struct Recorded<'a> {
    start_ns: u64,
    lost: u64,
    notes: &'a [Note],
}

/// All that has been noted, as a trace's file. Where that would be larger than a trace may
/// be, it has less of each thread.
///
/// # Errors
///
/// Where even a little of each is too large, or what `about` says.
pub fn write(about: &BTreeMap<String, String>) -> Result<Vec<u8>, Error> {
    let recorded = |recording: &'static Recording| {
        let count = recording.count.load(Ordering::Acquire);
        // SAFETY: written, each before the count said so.
        let notes = unsafe { slice::from_raw_parts(recording.notes(), count) };
        Recorded { start_ns: recording.start_ns, lost: recording.lost.load(Ordering::Relaxed), notes }
    };
    let mut threads: Vec<Recorded<'_>> = since(LAST.load(Ordering::Acquire)).map(recorded).collect();
    threads.reverse();
    let mut most = threads.iter().map(|thread| thread.notes.len()).max().unwrap_or(0);
    loop {
        let trace = Trace { about: about.clone(), ..assemble(&threads, most) };
        match trace.write() {
            Err(Error::TooLarge("events" | "objects" | "bytes")) if most > 1 => most /= 2,
            written => return written,
        }
    }
}

/// The trace of what threads have noted, up to so many notes of each.
///
/// - A swap that may have been a count is one if something that is certain says that an
///   object lay there: an add, a drop, or a call of the function that drops references.
/// - Where an address has another owner than before, it is another object.
/// - Where a note does not say who the owner is, it is the one that the thread has seen
///   there last, or else the first that anyone has.
fn assemble(threads: &[Recorded<'_>], most: usize) -> Trace {
    let mut trace = Trace::default();
    let kept = |thread: &Recorded<'_>| thread.notes.len().min(most);
    // Of each address at which an object has been: the first owner that is known.
    let mut first: HashMap<usize, usize> = HashMap::new();
    for note in threads.iter().flat_map(|thread| &thread.notes[..kept(thread)]) {
        if note.object & tag::CANDIDATE == 0 {
            let owner_id = first.entry(note.object & !tag::BITS).or_insert(note.owner_id);
            if *owner_id == 0 {
                *owner_id = note.owner_id;
            }
        }
    }
    let mut numbers: HashMap<(usize, usize), u32> = HashMap::new();
    for (number, thread) in threads.iter().enumerate() {
        let mut seen: HashMap<usize, usize> = HashMap::new();
        let mut events = Vec::new();
        for note in &thread.notes[..kept(thread)] {
            let address = note.object & !tag::BITS;
            let Some(&first) = first.get(&address) else { continue };
            let owner_id = match note.owner_id {
                0 => seen.get(&address).copied().unwrap_or(first),
                id => {
                    seen.insert(address, id);
                    id
                }
            };
            let object = *numbers.entry((address, owner_id)).or_insert_with(|| {
                trace.objects.push(Object { address: address as u64, owner: None, immortal: false });
                trace.objects.len() as u32 - 1
            });
            let known = &mut trace.objects[object as usize];
            known.owner = known.owner.or(note.owner.checked_sub(1));
            events.push(match note.object & tag::DECREMENT {
                0 => Event::Increment(object),
                _ => Event::Decrement(object),
            });
        }
        let name = if number == 0 { "main".into() } else { format!("thread {number}") };
        let lost = thread.lost + (thread.notes.len() - kept(thread)) as u64;
        trace.threads.push(Thread { name, start_ns: thread.start_ns, events, lost });
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: usize = 0;
    const DROP: usize = tag::DECREMENT;
    const MAYBE: usize = tag::CANDIDATE;
    const MAYBE_DROP: usize = tag::CANDIDATE | tag::DECREMENT;

    /// By thread i with id 100 + i, or by one without a recording.
    fn note(object: usize, tag: usize, owner_id: usize) -> Note {
        let owner = if (100..110).contains(&owner_id) { owner_id as u32 - 99 } else { 0 };
        Note { object: object | tag, owner_id, owner }
    }

    fn assembled(threads: &[&[Note]], most: usize) -> Trace {
        let recorded: Vec<_> = threads.iter().map(|&notes| Recorded { start_ns: 7, lost: 1, notes }).collect();
        assemble(&recorded, most)
    }

    fn owners(trace: &Trace) -> Vec<(u64, Option<u32>)> {
        trace.objects.iter().map(|object| (object.address, object.owner)).collect()
    }

    #[test]
    fn a_swap_counts_where_an_object_is_known_to_be() {
        let first = [note(0x100, MAYBE, 0), note(0x200, MAYBE, 0), note(0x100, MAYBE_DROP, 0)];
        let second = [note(0x100, DROP, 100)];
        let trace = assembled(&[&first, &second], 10);
        assert_eq!(owners(&trace), [(0x100, Some(0))]);
        assert_eq!(trace.threads[0].events, [Event::Increment(0), Event::Decrement(0)]);
        assert_eq!(trace.threads[1].events, [Event::Decrement(0)]);
        let names: Vec<_> = trace.threads.iter().map(|thread| thread.name.as_str()).collect();
        assert_eq!(names, ["main", "thread 1"]);
        assert_eq!((trace.threads[0].lost, trace.threads[0].start_ns), (1, 7), "what is no count is not lost");
    }

    #[test]
    fn an_address_with_another_owner_is_another_object() {
        let first = [note(0x100, ADD, 101), note(0x100, MAYBE, 0), note(0x100, ADD, 102), note(0x100, DROP, 0)];
        let second = [note(0x100, MAYBE, 0), note(0x100, ADD, 102), note(0x100, MAYBE_DROP, 0)];
        let trace = assembled(&[&first, &second], 10);
        assert_eq!(owners(&trace), [(0x100, Some(1)), (0x100, Some(2))]);
        use Event::{Decrement, Increment};
        assert_eq!(trace.threads[0].events, [Increment(0), Increment(0), Increment(1), Decrement(1)]);
        assert_eq!(trace.threads[1].events, [Increment(0), Increment(1), Decrement(1)]);
    }

    #[test]
    fn what_nobody_owns_and_who_has_no_recording_is_no_owner() {
        let notes = [note(0x100, ADD, 0), note(0x200, ADD, 500), note(0x200, DROP, 0), note(0x300, DROP, 0)];
        let trace = assembled(&[&notes, &[note(0x300, ADD, 100)]], 10);
        assert_eq!(owners(&trace), [(0x100, None), (0x200, None), (0x300, Some(0))]);
        assert_eq!(trace.events(), 5);
    }

    #[test]
    fn what_is_cut_off_is_lost() {
        let notes = [note(0x100, ADD, 100), note(0x200, ADD, 100), note(0x200, DROP, 100)];
        let trace = assembled(&[&notes, &notes[..1]], 1);
        assert_eq!(trace.threads.iter().map(|thread| thread.lost).collect::<Vec<_>>(), [1 + 2, 1]);
        assert_eq!((trace.events(), trace.objects.len()), (2, 1));
    }
}
