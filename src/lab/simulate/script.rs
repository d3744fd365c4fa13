//! Who plays what: simulated threads, and the recorded ones that they replay.
//!
//! Simulated thread i replays recorded thread i modulo R, of those R that have
//! recorded anything. All of them use the same shared objects. An object that
//! only one recorded thread touches is private: each replica has one of its own,
//! elsewhere in memory. Replicas start at different points of the recording, and
//! go round it.
//!
//! An object whose maker is not among the simulated threads (the main thread, in
//! a workload's trace) is foreign to all of them.

use std::collections::HashMap;

use super::cache::{Line, LINE_SHIFT, MOST_THREADS};
use super::model::Thing;
use crate::lab::trace::{Event, Object, Trace};

/// From an object's address to its count, which says which line it is on
/// (`ob_ref_shared` of a free-threaded object).
const COUNT_OFFSET: u64 = 16;
/// Between the addresses of an object and its next replica: more than a process
/// has, and 256 of them do not come round.
const REPLICA_DISTANCE: u64 = 1 << 47;

/// One step of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// On an object: an increment if the second is true.
    Count(u32, bool),
    /// The object's memory is used for something else.
    Death(u32),
    /// Other work, in nanoseconds.
    Work(u32),
}

/// A simulated thread's steps, with objects by their numbers in the play.
#[derive(Debug)]
pub struct Part {
    steps: Vec<Step>,
    at: usize,
    /// When it starts.
    pub start_ns: u64,
}

impl Part {
    /// The next step. Parts have no end: they are gone round.
    #[inline]
    pub fn next_step(&mut self) -> Step {
        let step = self.steps[self.at];
        self.at = if self.at + 1 == self.steps.len() { 0 } else { self.at + 1 };
        step
    }
}

/// All objects and all parts.
#[derive(Debug)]
pub struct Play {
    /// By number.
    pub things: Vec<Thing>,
    /// Lines that things lie on.
    pub lines: usize,
    /// By simulated thread.
    pub parts: Vec<Part>,
    /// Recorded threads that are replayed.
    pub recorded: usize,
}

/// What is known of a recorded object.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Recorded threads that touch it: the first, and whether there are more.
    by: Option<u16>,
    by_more: bool,
    dies: bool,
    /// In the play: of a shared object, or of the part that is made at the moment.
    number: Option<u32>,
}

impl Play {
    /// For so many simulated threads, which replay up to so many events each and
    /// then go round; none where the trace has no counts.
    pub fn new(trace: &Trace, threads: usize, events: usize) -> Option<Play> {
        assert!((1..=MOST_THREADS).contains(&threads));
        let counts = |event: &Event| matches!(event, Event::Increment(_) | Event::Decrement(_));
        let active = |number: &usize| trace.threads[*number].events.iter().any(counts);
        // No more than can be played.
        let roles: Vec<usize> = (0..trace.threads.len()).filter(active).take(MOST_THREADS).collect();
        if roles.is_empty() {
            return None;
        }
        let known = know_objects(trace, &roles);
        let mut maker =
            Maker { trace, roles: &roles, threads, known, things: Vec::new(), lines: HashMap::new(), used: Vec::new() };
        let starts: Vec<_> = roles.iter().map(|role| rests(&trace.threads[*role].events)).collect();
        let parts = (0..threads).map(|thread| maker.part(thread, &starts[thread % roles.len()], events)).collect();
        Some(Play { things: maker.things, lines: maker.lines.len(), parts, recorded: roles.len() })
    }
}

/// Sees who touches what.
fn know_objects(trace: &Trace, roles: &[usize]) -> Vec<Known> {
    let mut known = vec![Known::default(); trace.objects.len()];
    for (role, number) in roles.iter().enumerate() {
        for event in &trace.threads[*number].events {
            let Some(object) = object_of(event) else { continue };
            let it = &mut known[object as usize];
            it.dies |= matches!(event, Event::Death(_));
            it.by_more |= it.by.is_some_and(|by| by != role as u16);
            it.by = it.by.or(Some(role as u16));
        }
    }
    known
}

fn object_of(event: &Event) -> Option<u32> {
    match *event {
        Event::Increment(object) | Event::Decrement(object) | Event::Death(object) => Some(object),
        Event::Work(_) => None,
    }
}

/// Points at which the thread has dropped as many references as it has taken.
fn rests(events: &[Event]) -> Vec<usize> {
    let mut held = 0i64;
    let mut rests = Vec::new();
    for (at, event) in events.iter().enumerate() {
        if held == 0 {
            rests.push(at);
        }
        held += match event {
            Event::Increment(_) => 1,
            Event::Decrement(_) => -1,
            _ => 0,
        };
    }
    rests
}

/// The last of some points up to `at`; the first is 0.
fn last_up_to(rests: &[usize], at: usize) -> usize {
    rests[rests.partition_point(|rest| *rest <= at) - 1]
}

/// Makes parts and things.
struct Maker<'a> {
    trace: &'a Trace,
    roles: &'a [usize],
    threads: usize,
    known: Vec<Known>,
    things: Vec<Thing>,
    lines: HashMap<u64, Line>,
    /// Private objects that have a number in this part.
    used: Vec<u32>,
}

impl Maker<'_> {
    /// A simulated thread. It starts and ends, if it can, where the recorded thread
    /// holds nothing.
    fn part(&mut self, thread: usize, rests: &[usize], most: usize) -> Part {
        let (role, replica) = (thread % self.roles.len(), thread / self.roles.len());
        let recorded = &self.trace.threads[self.roles[role]];
        let all = recorded.events.len();
        let replicas = (self.threads - role).div_ceil(self.roles.len());
        let from = last_up_to(rests, all * replica / replicas);
        let mut length = all;
        if most.max(1) < all {
            let until = last_up_to(rests, (from + most.max(1)) % all);
            length = match (until + all - from) % all {
                // There is no such point, or only this one.
                0 => most.max(1),
                length if length > most => most.max(1),
                length => length,
            };
        }
        let counts = |at: usize| !matches!(recorded.events[(from + at) % all], Event::Work(_) | Event::Death(_));
        if !(0..length).any(counts) {
            // Or it would go round for ever, and count nothing.
            length = all;
        }
        let events = (0..length).map(|at| recorded.events[(from + at) % all]);
        let steps = events.map(|event| self.step(event, thread, replica)).collect();
        for object in self.used.drain(..) {
            self.known[object as usize].number = None;
        }
        Part { steps, at: 0, start_ns: recorded.start_ns }
    }

    fn step(&mut self, event: Event, thread: usize, replica: usize) -> Step {
        match event {
            Event::Increment(object) => Step::Count(self.number(object, thread, replica), true),
            Event::Decrement(object) => Step::Count(self.number(object, thread, replica), false),
            Event::Death(object) => Step::Death(self.number(object, thread, replica)),
            Event::Work(nanoseconds) => Step::Work(nanoseconds),
        }
    }

    /// An object's number in the play, for a thread.
    fn number(&mut self, object: u32, thread: usize, replica: usize) -> u32 {
        let known = self.known[object as usize];
        if let Some(number) = known.number {
            return number;
        }
        let number = self.things.len() as u32;
        self.known[object as usize].number = Some(number);
        if known.by_more {
            self.add(object, None, 0);
        } else {
            self.used.push(object);
            self.add(object, Some(thread), replica);
        }
        number
    }

    /// The simulated thread that owns an object, which is private to a thread, or
    /// shared.
    fn owner_of(&self, object: u32, private_to: Option<usize>) -> Option<u16> {
        let maker = self.trace.objects[object as usize].owner?;
        let role = self.roles.iter().position(|role| *role == maker as usize)?;
        match private_to {
            Some(thread) if thread % self.roles.len() == role => Some(thread as u16),
            _ => (role < self.threads).then_some(role as u16),
        }
    }

    fn add(&mut self, object: u32, private_to: Option<usize>, replica: usize) {
        let owner = self.owner_of(object, private_to);
        let Object { address, immortal, .. } = self.trace.objects[object as usize];
        let address = address.wrapping_add((replica as u64).wrapping_mul(REPLICA_DISTANCE));
        let next = self.lines.len() as Line;
        let line = *self.lines.entry(address.wrapping_add(COUNT_OFFSET) >> LINE_SHIFT).or_insert(next);
        let mortal = self.known[object as usize].dies;
        self.things.push(Thing { address, line, owner, immortal, mortal });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::trace::Thread;

    fn trace() -> Trace {
        let object = |address, owner| Object { address, owner, immortal: false };
        let pairs = |objects: &[u32]| {
            objects.iter().flat_map(|object| [Event::Increment(*object), Event::Decrement(*object)]).collect()
        };
        Trace {
            about: Default::default(),
            threads: vec![
                Thread { name: "main".into(), ..Thread::default() },
                Thread { name: "a".into(), events: pairs(&[0, 1]), ..Thread::default() },
                Thread { name: "b".into(), events: pairs(&[0, 2]), ..Thread::default() },
            ],
            objects: vec![object(0x1000, Some(0)), object(0x2000, Some(1)), object(0x3000, None)],
        }
    }

    #[test]
    fn what_one_thread_touches_is_each_replicas_own() {
        let mut play = Play::new(&trace(), 4, 100).expect("events");
        assert_eq!(play.recorded, 2);
        // One shared, and one for each thread.
        assert_eq!(play.things.len(), 5);
        let things: Vec<_> = play.things.iter().map(|thing| (thing.owner, thing.address & 0xFFFF)).collect();
        // Main is not replayed; object 1 is its thread's own, in each replica.
        let expected = [(None, 0x1000), (Some(0), 0x2000), (None, 0x3000), (Some(2), 0x2000), (None, 0x3000)];
        assert_eq!(things, expected);
        assert_eq!(play.lines, 5);
        let steps: Vec<_> = (0..4).map(|_| play.parts[0].next_step()).collect();
        let expected = [(0, true), (0, false), (1, true), (1, false)].map(|(object, up)| Step::Count(object, up));
        assert_eq!(steps, expected);
        // The second replica starts half-way.
        assert_eq!(play.parts[2].next_step(), Step::Count(3, true));
        assert_eq!(play.parts[3].next_step(), Step::Count(4, true));
    }

    #[test]
    fn a_replica_starts_where_its_thread_holds_nothing() {
        let events = vec![Event::Increment(0), Event::Increment(0), Event::Decrement(0), Event::Decrement(0)];
        let mut trace = trace();
        trace.threads.truncate(2);
        trace.threads[1].events = events;
        let mut play = Play::new(&trace, 2, 100).expect("events");
        assert_eq!(play.parts[1].next_step(), Step::Count(1, true));
    }

    #[test]
    fn a_part_ends_where_its_thread_holds_nothing() {
        let mut trace = trace();
        let events = &mut trace.threads[1].events;
        *events = events.iter().copied().cycle().take(40).collect();
        let steps = |most| Play::new(&trace, 1, most).expect("events").parts[0].steps.len();
        assert_eq!([40, 39, 11, 10, 1, 0].map(steps), [40, 38, 10, 10, 1, 1]);
    }

    #[test]
    fn a_trace_without_counts_has_nothing_to_play() {
        let mut trace = trace();
        for thread in &mut trace.threads {
            thread.events = vec![Event::Work(5)];
        }
        assert!(Play::new(&trace, 1, 100).is_none());
    }
}
