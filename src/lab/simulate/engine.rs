//! Simulated time: a clock for each thread, and for each line the moment from
//! which it can be transferred again.
//!
//! The thread whose clock is furthest behind goes on. An operation is the use of
//! the thread's table and of lines, one after the other. A line that must come
//! from another cache is *reserved*: the transfer begins when all transfers that
//! were asked for before are done, and until then the thread sleeps and the line
//! stays where it is. So a hot line serializes its transfers, first come, first
//! served. A thread whose use before was of the same line keeps it for `hold`
//! once it has it: that is what real caches do with a line that is counted on
//! again and again.
//!
//! Everything is measured over a window that is the same for all threads: from
//! when half of all operations are done to when all are.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::cache::{Caches, Line, Place, Use};
use super::costs::Costs;
use super::model::{Model, Plan, Thing};
use super::script::{Part, Step};

/// Picoseconds.
type Time = u64;

/// No clock starts later, or is set forward further: what is simulated then has room (100 days).
const LATEST: Time = Time::MAX / 2;

/// Steps of `GOLDEN` modulo this visit it evenly (the golden ratio: Weyl, Knuth).
const SPREAD: Time = 1024;
const GOLDEN: Time = 633;

/// Costs in picoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Prices {
    hit: Time,
    plain: Time,
    table: Time,
    surprise: Time,
    atomic: Time,
    swap: Time,
    swap_apart: Time,
    transfer: Time,
    transfer_ahead: Time,
    read_transfer: Time,
    hold: Time,
    hold_looked: Time,
    fill: Time,
    read_fill: Time,
    /// Other work beside each operation.
    work: Time,
}

impl Prices {
    /// With so many nanoseconds of other work beside each pair.
    pub fn new(costs: &Costs, work_ns: f64) -> Prices {
        let price = |nanoseconds: f64| (nanoseconds * 1000.0) as Time;
        Prices {
            hit: price(costs.hit),
            plain: price(costs.plain),
            table: price(costs.table),
            surprise: price(costs.surprise),
            atomic: price(costs.atomic),
            swap: price(costs.swap),
            swap_apart: price(costs.swap_apart),
            transfer: price(costs.transfer),
            transfer_ahead: price(costs.transfer_ahead),
            read_transfer: price(costs.read_transfer),
            hold: price(costs.hold),
            hold_looked: price(costs.hold_looked),
            fill: price(costs.fill),
            read_fill: price(costs.read_fill),
            work: price(work_ns) / 2,
        }
    }

    /// `again`: the thread's use before was of this line.
    fn of_use(&self, how: Use, again: bool) -> Time {
        match how {
            Use::Read => self.hit,
            Use::Write => self.plain,
            Use::Atomic => self.atomic,
            Use::Swap if again => self.swap,
            Use::Swap => self.swap_apart,
        }
    }

    /// A locked instruction waits for its line, and everything behind waits for
    /// it; others overlap.
    fn of_fill(&self, how: Use) -> Time {
        if how.is_atomic() {
            self.fill
        } else {
            self.read_fill
        }
    }

    /// `late`: nothing was asked for ahead; `idle`: for so long nobody has used the
    /// line. What the processor has asked for
    /// ahead is gone again, if somebody has.
    fn of_transfer(&self, how: Use, late: bool, idle: Time) -> Time {
        match how.is_atomic() {
            true if late || idle < self.transfer => self.transfer,
            true => self.transfer_ahead,
            false => self.read_transfer,
        }
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Increments and decrements.
    pub operations: u64,
    /// Locked instructions on counts.
    pub atomics: u64,
    /// Lines that came from another cache, or were taken from one.
    pub transfers: u64,
    /// Lines that came from further away.
    pub fills: u64,
    /// Operations that wanted a table.
    pub wanted: u64,
    /// Of those, how many needed nothing else.
    pub hits: u64,
}

impl Tally {
    /// What has happened since.
    pub fn since(&self, before: &Tally) -> Tally {
        Tally {
            operations: self.operations - before.operations,
            atomics: self.atomics - before.atomics,
            transfers: self.transfers - before.transfers,
            fills: self.fills - before.fills,
            wanted: self.wanted - before.wanted,
            hits: self.hits - before.hits,
        }
    }
}

/// A simulated thread.
#[derive(Debug)]
struct Player {
    part: Part,
    clock: Time,
    plan: Plan,
    /// Of the plan's lines, those that have been used.
    used: usize,
    /// The next line may be transferred now.
    granted: bool,
    /// How the look in the table before ended.
    hit: bool,
    /// This operation's look ended otherwise: the processor has not run ahead.
    surprised: bool,
    /// The line of the use before.
    last: Option<Line>,
}

/// What a stretch of a simulation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stretch {
    /// What happened in it.
    pub tally: Tally,
    /// How long it took, in nanoseconds: of all threads' common clock, or where
    /// they take turns, of all turns.
    pub ns: f64,
    /// Of that, waiting for lines from other caches, where threads take turns.
    pub transfer_ns: f64,
}

/// Simulated threads at work.
pub struct Engine<'a> {
    things: &'a [Thing],
    model: Box<dyn Model + 'a>,
    players: Vec<Player>,
    caches: Caches,
    prices: Prices,
    tally: Tally,
    transfer_time: Time,
    /// Below [`SPREAD`]: see its use.
    spread: Time,
    /// References that the operations so far make, for each object.
    net: Vec<i64>,
}

impl<'a> Engine<'a> {
    /// Threads at the start of their parts, with empty caches of so many bytes.
    pub fn new(
        things: &'a [Thing],
        lines: usize,
        parts: Vec<Part>,
        model: Box<dyn Model + 'a>,
        prices: Prices,
        cache_bytes: usize,
    ) -> Self {
        let caches = Caches::new(parts.len(), lines, cache_bytes);
        let player = |part: Part| Player {
            clock: part.start_ns.saturating_mul(1000).min(LATEST),
            part,
            plan: Plan::default(),
            used: 0,
            granted: false,
            hit: true,
            surprised: false,
            last: None,
        };
        let players = parts.into_iter().map(player).collect();
        let net = things.iter().map(Thing::references).collect();
        Engine { things, model, players, caches, prices, tally: Tally::default(), transfer_time: 0, spread: 0, net }
    }

    /// So many operations of all threads together; measures the second half.
    pub fn run(&mut self, operations: u64) -> Stretch {
        let mut waiting: BinaryHeap<_> = (0..self.players.len()).map(|thread| Reverse(self.ahead(thread))).collect();
        let (mut middle, mut now) = (None, 0);
        while self.tally.operations < operations {
            let Some(Reverse((clock, _, thread))) = waiting.pop() else { break };
            now = clock;
            if middle.is_none() && self.tally.operations >= operations / 2 {
                middle = Some((self.tally, now));
            }
            let next = waiting.peek().map_or(Time::MAX, |Reverse((clock, ..))| *clock);
            // One thread alone must come by here, too.
            let most = self.tally.operations + (operations / 64).max(1);
            while self.step(thread) && self.players[thread].clock < next && self.tally.operations < most {}
            waiting.push(Reverse(self.ahead(thread)));
        }
        let end = waiting.peek().map_or(now, |Reverse((clock, ..))| *clock);
        let (tally, began) = middle.unwrap_or_default();
        Stretch { tally: self.tally.since(&tally), ns: (end - began) as f64 / 1000.0, transfer_ns: 0.0 }
    }

    /// What orders the threads: the clock, and at the same time who has been
    /// promised a line.
    fn ahead(&self, thread: usize) -> (Time, bool, usize) {
        let player = &self.players[thread];
        (player.clock, !player.granted, thread)
    }

    /// Two turns of so many operations for each thread, one thread at a time;
    /// measures the second turns.
    pub fn take_turns(&mut self, operations: u64) -> Stretch {
        let mut stretch = Stretch::default();
        let mut clock = 0;
        for round in 0..2 {
            let (before, began, waited) = (self.tally, clock, self.transfer_time);
            for thread in 0..self.players.len() {
                // Nobody else runs: what has been asked for is there.
                self.players[thread].clock = self.players[thread].clock.max(clock);
                let until = self.tally.operations + operations;
                while self.tally.operations < until || self.players[thread].granted {
                    self.step(thread);
                }
                clock = self.players[thread].clock;
            }
            if round == 1 {
                let ns = |time: Time| time as f64 / 1000.0;
                let transfer_ns = ns(self.transfer_time - waited);
                stretch = Stretch { tally: self.tally.since(&before), ns: ns(clock - began), transfer_ns };
            }
        }
        stretch
    }

    /// Ends all threads, and says how many references the scheme has lost or
    /// invented: none, or the scheme is wrong.
    pub fn residue(&mut self) -> u64 {
        self.model.flush();
        let differences = self.net.iter().zip(0..).map(|(net, object)| net.abs_diff(self.model.references(object)));
        differences.sum()
    }

    /// Goes on with a thread; false if it must sleep until its clock.
    #[inline]
    fn step(&mut self, thread: usize) -> bool {
        if self.players[thread].used == self.players[thread].plan.touches.len() {
            self.begin(thread);
        }
        while let Some((line, how)) = self.players[thread].plan.touches.get(self.players[thread].used).copied() {
            if !self.use_line(thread, line, how) {
                return false;
            }
            self.players[thread].used += 1;
        }
        true
    }

    /// Plans the next operation of a thread.
    fn begin(&mut self, thread: usize) {
        let player = &mut self.players[thread];
        player.plan.clear();
        player.used = 0;
        let (object, up) = match player.part.next_step() {
            Step::Work(nanoseconds) => {
                player.clock =
                    player.clock.saturating_add(Time::from(nanoseconds) * 1000).min(LATEST.max(player.clock));
                return;
            }
            Step::Death(object) => {
                player.plan.touch(self.things[object as usize].line, Use::Write);
                return;
            }
            Step::Count(object, up) => (object, up),
        };
        let thing = &self.things[object as usize];
        player.plan.touch(thing.line, Use::Read);
        if !thing.immortal {
            self.net[object as usize] += if up { 1 } else { -1 };
            self.model.count(thread, object, up, &mut player.plan);
        }
        player.clock += self.prices.work + Time::from(player.plan.table) * self.prices.table;
        player.surprised = player.plan.table > 0 && player.plan.hit != player.hit;
        if player.surprised {
            player.hit = player.plan.hit;
            player.clock += self.prices.surprise;
        }
        self.tally.operations += 1;
        self.tally.wanted += u64::from(player.plan.wanted);
        self.tally.hits += u64::from(player.plan.hit);
    }

    /// How long a thread keeps a line that it asks for again. Spread evenly, half a
    /// use up and down: else all would have room for the same whole number of uses.
    fn hold(&mut self, thread: usize, this_use: Time) -> Time {
        let looks = self.players[thread].plan.looks;
        let hold = if looks { self.prices.hold_looked } else { self.prices.hold };
        self.spread = (self.spread + GOLDEN) % SPREAD;
        (hold + this_use * self.spread / SPREAD).saturating_sub(this_use / 2)
    }

    /// Uses a line, if it may now; else the thread sleeps until its clock.
    fn use_line(&mut self, thread: usize, line: Line, how: Use) -> bool {
        let Player { clock, last, granted, surprised, .. } = self.players[thread];
        let again = last == Some(line);
        let idle = clock.saturating_sub(self.caches.used_at(line));
        let transfer = self.prices.of_transfer(how, again || surprised, idle);
        let this_use = self.prices.of_use(how, again);
        let place = if granted { Place::Elsewhere } else { self.caches.find(thread, line, how) };
        let waits = match place {
            Place::Here => 0,
            Place::Nowhere => {
                self.tally.fills += 1;
                self.prices.of_fill(how)
            }
            Place::Elsewhere => {
                let from = clock.max(self.caches.free_at(line));
                if !granted && how != Use::Read {
                    let hold = if again { self.hold(thread, this_use) } else { 0 };
                    self.caches.keep_until(line, from + transfer + hold);
                }
                if !granted && from > clock {
                    self.players[thread].granted = true;
                    self.players[thread].clock = from;
                    return false;
                }
                self.tally.transfers += 1;
                self.transfer_time += transfer;
                transfer
            }
        };
        self.tally.atomics += u64::from(how.is_atomic());
        let player = &mut self.players[thread];
        player.granted = false;
        player.last = Some(line);
        player.clock += waits + this_use;
        self.caches.access(thread, line, how);
        self.caches.use_until(line, player.clock);
        true
    }
}
