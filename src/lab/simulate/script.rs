//! Who plays what: simulated threads, and the recorded ones that they replay.
//!
//! Simulated thread i replays recorded thread i modulo R, of those R that have
//! recorded something to speak of ([`roles`]). All of them use the same shared objects. An object that
//! only one recorded thread touches is private: each replica has one of its own,
//! elsewhere in memory. Replicas start at different points of the recording, and
//! go round it.
//!
//! An object whose maker is not among the simulated threads (the main thread, in
//! a workload's trace) is foreign to all of them.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::cache::{Line, LINE_SHIFT, MOST_THREADS};
use super::model::Thing;
use crate::lab::trace::{Event, Object, Thread, Trace};

/// From an object's address to its count, which says which line it is on
/// (`ob_ref_shared` of a free-threaded object).
const COUNT_OFFSET: u64 = 16;
/// Between the addresses of an object and its next replica: more than a process
/// has, and 256 of them do not come round.
const REPLICA_DISTANCE: u64 = 1 << 47;
/// Threads that count so many times less than the busiest are not replayed: a program's
/// main thread, which starts others and waits, would be replicated like the rest.
const NEGLIGIBLE: u64 = 20;
/// By this name a recorder says what is beside the counts.
const OTHER_WORK: &str = "bare_ns_per_pair";

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
        let roles = roles(trace);
        if roles.is_empty() {
            return None;
        }
        let known = know_objects(trace, &roles);
        let mut maker = Maker {
            trace,
            roles: &roles,
            threads,
            known,
            things: Vec::new(),
            lines: HashMap::new(),
            used: Vec::new(),
            has_times: has_times(trace),
        };
        let starts: Vec<_> = roles.iter().map(|role| rests(&trace.threads[*role].events)).collect();
        let parts = (0..threads).map(|thread| maker.part(thread, &starts[thread % roles.len()], events)).collect();
        Some(Play { things: maker.things, lines: maker.lines.len(), parts, recorded: roles.len() })
    }
}

/// The recorded threads that are replayed: no more than can be; those first that counted
/// most, so that a few simulated threads replay what matters.
pub fn roles(trace: &Trace) -> Vec<usize> {
    let recorded = |thread: &Thread| {
        let (increments, decrements) = thread.counts();
        increments + decrements
    };
    let all: Vec<(u64, u64)> = trace.threads.iter().map(|thread| (recorded(thread), thread.lost)).collect();
    let busiest = all.iter().map(|(recorded, lost)| recorded.saturating_add(*lost)).max().unwrap_or(0);
    let counts = |&number: &usize| {
        let (recorded, lost) = all[number];
        recorded > 0 && recorded.saturating_add(lost) >= busiest / NEGLIGIBLE
    };
    let mut roles: Vec<usize> = (0..all.len()).filter(counts).collect();
    roles.sort_by_key(|number| Reverse(all[*number].0));
    roles.truncate(MOST_THREADS);
    roles
}

/// Whether the trace has times that compare with a replay's. Else the time between the
/// starts of two threads was that of a whole program, and a replay has the counts alone.
fn has_times(trace: &Trace) -> bool {
    let works = |thread: &Thread| thread.events.iter().any(|event| matches!(event, Event::Work(_)));
    trace.about.contains_key(OTHER_WORK) || trace.threads.iter().any(works)
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
struct Rests {
    points: Vec<usize>,
    /// The end is such a point, too. Where not all counts are recorded, it is not, and
    /// there may be none for long.
    balanced: bool,
}

fn rests(events: &[Event]) -> Rests {
    let mut held = 0i64;
    let mut points = Vec::new();
    for (at, event) in events.iter().enumerate() {
        if held == 0 {
            points.push(at);
        }
        held += match event {
            Event::Increment(_) => 1,
            Event::Decrement(_) => -1,
            _ => 0,
        };
    }
    Rests { points, balanced: held == 0 }
}

impl Rests {
    /// The last up to `at`; the first is 0.
    fn last_up_to(&self, at: usize) -> usize {
        self.points[self.points.partition_point(|rest| *rest <= at) - 1]
    }
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
    has_times: bool,
}

impl Maker<'_> {
    /// A simulated thread. It starts and ends, if it can, where the recorded thread
    /// holds nothing.
    fn part(&mut self, thread: usize, rests: &Rests, most: usize) -> Part {
        let (role, replica) = (thread % self.roles.len(), thread / self.roles.len());
        let recorded = &self.trace.threads[self.roles[role]];
        let all = recorded.events.len();
        let replicas = (self.threads - role).div_ceil(self.roles.len());
        let place = all * replica / replicas;
        let mut from = rests.last_up_to(place);
        if !rests.balanced && place - from >= all / replicas {
            // Another replica's.
            from = place;
        }
        let mut length = all;
        if most.max(1) < all {
            let until = rests.last_up_to((from + most.max(1)) % all);
            length = match (until + all - from) % all {
                // There is no such point near the end, or only this one.
                length if length > most || length <= most / 2 => most.max(1),
                length => length,
            };
        }
        let counts = |at: usize| !matches!(recorded.events[(from + at) % all], Event::Work(_) | Event::Death(_));
        if !(0..length).any(counts) {
            // Or it would go round for ever, and count nothing.
            from += (length..all).find(|&at| counts(at)).unwrap_or(0);
        }
        let events = (0..length).map(|at| recorded.events[(from + at) % all]);
        let steps = events.map(|event| self.step(event, thread, replica)).collect();
        for object in self.used.drain(..) {
            self.known[object as usize].number = None;
        }
        Part { steps, at: 0, start_ns: if self.has_times { recorded.start_ns } else { 0 } }
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

    /// As of a program, where what owners count is not recorded.
    fn unbalanced(events: u32) -> Trace {
        let mut trace = trace();
        trace.threads[1].events = (0..events).map(|_| Event::Decrement(1)).collect();
        trace
    }

    #[test]
    fn a_part_of_a_thread_that_only_drops_is_as_long_as_is_asked_for() {
        let steps = |most| Play::new(&unbalanced(1000), 1, most).expect("events").parts[0].steps.len();
        assert_eq!([1000, 500, 10, 1].map(steps), [1000, 500, 10, 1]);
    }

    #[test]
    fn replicas_of_such_a_thread_start_at_different_points() {
        let mut trace = unbalanced(100);
        for (at, event) in trace.threads[1].events.iter_mut().enumerate() {
            *event = Event::Decrement(if at < 50 { 1 } else { 2 });
        }
        let mut play = Play::new(&trace, 2, 100).expect("events");
        let first: Vec<Step> = play.parts.iter_mut().map(Part::next_step).collect();
        let addresses: Vec<u64> = first
            .iter()
            .map(|step| match step {
                Step::Count(thing, _) => play.things[*thing as usize].address & 0xFFFF,
                _ => 0,
            })
            .collect();
        assert_eq!(addresses, [0x2000, 0x3000]);
    }

    #[test]
    fn a_thread_that_counts_next_to_nothing_is_not_replayed() {
        let mut trace = unbalanced(100);
        assert_eq!(roles(&trace), [1], "the last has four");
        trace.threads[1].lost = 1000;
        trace.threads[2].lost = 100;
        assert_eq!(roles(&trace), [1, 2]);
        trace.threads[0].events = vec![Event::Increment(0); 101];
        trace.threads[0].lost = 1000;
        assert_eq!(roles(&trace), [0, 1, 2]);
        trace.threads[0].events.clear();
        trace.threads[2].events.clear();
        assert_eq!(roles(&trace), [1]);
    }

    #[test]
    fn starts_are_kept_where_the_trace_has_times() {
        let mut trace = trace();
        trace.threads[2].start_ns = 5;
        let starts = |trace: &Trace| {
            Play::new(trace, 2, 100).expect("events").parts.iter().map(|part| part.start_ns).collect::<Vec<_>>()
        };
        assert_eq!(starts(&trace), [0, 0]);
        trace.threads[1].events.push(Event::Work(1));
        assert_eq!(starts(&trace), [0, 5]);
    }

    #[test]
    fn a_part_without_counts_starts_at_the_next_one_and_is_no_longer() {
        let mut trace = trace();
        trace.threads.truncate(2);
        let mut events = vec![Event::Work(1); 1000];
        events.extend([Event::Increment(1), Event::Decrement(1)]);
        trace.threads[1].events = events;
        let mut play = Play::new(&trace, 1, 10).expect("events");
        assert_eq!((play.parts[0].steps.len(), play.parts[0].next_step()), (10, Step::Count(0, true)));
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
