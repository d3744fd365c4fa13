//! Lulls: while one thread at a time runs, nothing contends, and counts cost what the
//! instructions cost that do them. Where a locked instruction is cheap, that is less than a
//! jump to a trampoline and back: so there the sites are as they were during a lull, and
//! become jumps again when threads run at once.
//!
//! Whether they do is told by the processor time that the process uses. What it uses beyond
//! the time that passes is added up; the system brings other threads' times up to date once a
//! tick, so that a single thread may seem to have used up to a tick (10 ms, at the most) more
//! than it has, but no more than that however long it runs.
//!
//! | moment | what happens |
//! |---|---|
//! | others have used [`SURPLUS`] | the lull ends |
//! | nothing of the kind for [`CALM`] of processor time | a lull begins; after one that was short, twice as much is waited for |
//!
//! Source: thread_group_cputime in Linux's kernel/sched/cputime.c, on what is up to date.

use std::hint::black_box;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Seconds of others beside one that runs all the time: more than a tick.
const SURPLUS: f64 = 0.012;
/// What one thread uses in a second, at the most: clocks differ, and settlers run beside it.
const ONE: f64 = 1.05;
/// Seconds of processor time without that, the first time and at the most.
const CALM: (f64, f64) = (0.05, 3.2);
/// A lull is short that has not lasted so many times what had been waited for.
const SHORT: f64 = 16.0;
/// Between looks at a process that does something.
pub const SOON: Duration = Duration::from_millis(5);
/// What a process uses that does something, of the time that passes.
const ACTIVE: f64 = 0.02;
/// Between looks at one that does nothing, at the most.
const LONGEST_NAP: Duration = Duration::from_millis(100);
/// How long it is not tried again, where the code could not be changed.
const PATIENCE: Duration = Duration::from_secs(1);

/// A locked addition is cheap that takes fewer plain ones than this. It took 6 to 8 on an AMD EPYC (family 25),
/// and about 18 on Intel Xeons (family 6, models 167 and 207), where a jump to a trampoline, and the way
/// through it, took less.
pub const CHEAP: f64 = 13.0;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    None,
    /// The sites become what they were.
    Begin,
    /// They become jumps.
    End,
}

/// Watches a process.
#[derive(Clone, Debug)]
pub struct Lulls {
    /// Since when, and what had been used then.
    last: Option<(Duration, Duration)>,
    is_lull: bool,
    /// Seconds of others.
    surplus: f64,
    /// What could not be done is not tried again before.
    not_before: Duration,
    /// Nothing changes by itself.
    is_held: bool,
    /// Seconds without.
    calm: f64,
    /// Of them, for a lull to begin.
    needed: f64,
    /// How long this lull has lasted, in seconds of processor time.
    lasted: f64,
    wait: Duration,
    begun: u64,
    total: Duration,
}

impl Default for Lulls {
    fn default() -> Self {
        Lulls::new()
    }
}

impl Lulls {
    /// Of a process in which one thread has run: the second look begins a lull.
    pub fn new() -> Lulls {
        let needed = CALM.0;
        Lulls {
            last: None,
            is_lull: false,
            surplus: 0.0,
            not_before: Duration::ZERO,
            is_held: false,
            calm: needed,
            needed,
            lasted: 0.0,
            wait: SOON,
            begun: 0,
            total: Duration::ZERO,
        }
    }

    /// A look, at this time of a clock, when the process has used so much processor time.
    /// [`done`](Self::done) follows a step.
    pub fn look(&mut self, now: Duration, used: Duration) -> Step {
        let last = self.last.replace((now, used));
        // In a forked child the one begins again.
        let (passed, used) = match last {
            Some((then, before)) if used >= before => (now.saturating_sub(then), (used - before).as_secs_f64()),
            _ => (Duration::ZERO, 0.0),
        };
        let seconds = passed.as_secs_f64();
        if last.is_some() {
            let is_active = used > ACTIVE * seconds;
            self.wait = if is_active { SOON } else { (2 * self.wait).min(LONGEST_NAP) };
        }
        self.surplus = (self.surplus + used - ONE * seconds).max(0.0);
        let step = if self.is_lull {
            self.lasted += used;
            self.total += passed;
            Some(Step::End).filter(|_| self.surplus > SURPLUS)
        } else {
            self.calm += used;
            if self.surplus > SURPLUS {
                (self.surplus, self.calm) = (0.0, 0.0);
            }
            Some(Step::Begin).filter(|_| last.is_some() && self.calm >= self.needed)
        };
        step.filter(|_| now >= self.not_before && !self.is_held).unwrap_or(Step::None)
    }

    /// The step has been taken, or could not be.
    pub fn done(&mut self, step: Step, succeeded: bool) {
        if !succeeded {
            self.not_before = self.last.map_or(Duration::ZERO, |(now, _)| now) + PATIENCE;
            return;
        }
        match step {
            Step::None => return,
            Step::Begin => {
                self.begun += 1;
                self.lasted = 0.0;
            }
            Step::End => {
                let was_short = self.lasted < SHORT * self.needed;
                self.needed = if was_short { (2.0 * self.needed).min(CALM.1) } else { CALM.0 };
            }
        }
        self.is_lull = step == Step::Begin;
        (self.surplus, self.calm) = (0.0, 0.0);
    }

    /// From now on nothing begins or ends by itself. For tests.
    pub fn hold(&mut self) {
        self.is_held = true;
    }

    /// Whether there is one.
    pub fn is_lull(&self) -> bool {
        self.is_lull
    }

    /// How many there were, and how long they lasted.
    pub fn sums(&self) -> (u64, Duration) {
        (self.begun, self.total)
    }

    /// How long until the next look: longer and longer while the process does nothing.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

/// The processor time that this process has used; none where the system does not say.
pub fn used() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in the structure.
    if unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(time.tv_sec.try_into().ok()?, time.tv_nsec.try_into().ok()?))
}

/// How many plain additions of registers, one after another, take as long as a locked one that
/// nobody contends for. The shortest of several runs of some microseconds each.
pub fn price() -> f64 {
    static PRICE: OnceLock<f64> = OnceLock::new();
    *PRICE.get_or_init(|| {
        let mut word = 0_u64;
        let shortest = |additions: &mut dyn FnMut()| {
            let runs = (0..16).map(|_| {
                let began = Instant::now();
                additions();
                began.elapsed().as_secs_f64()
            });
            runs.fold(f64::INFINITY, f64::min).max(1e-9)
        };
        const LOCKED: u32 = 1 << 10;
        const PLAIN: u32 = 1 << 13;
        let locked = shortest(&mut || {
            (0..LOCKED / 64).for_each(|_| {
                // SAFETY: adds to a word of our own.
                unsafe {
                    std::arch::asm!(
                        ".rept 64", "lock add qword ptr [{word}], 4", ".endr",
                        word = in(reg) &raw mut word, options(nostack),
                    );
                }
            });
        });
        // Not of a small constant: recent Intel processors do not execute such an addition, and
        // a locked one took as long as 100 of them.
        let plain = shortest(&mut || {
            let mut sum = 0_u64;
            (0..PLAIN / 64).for_each(|_| {
                // SAFETY: adds to a register.
                unsafe {
                    std::arch::asm!(
                        ".rept 64", "add {sum}, {one}", ".endr",
                        sum = inout(reg) sum, one = in(reg) 4_u64, options(nomem, nostack),
                    );
                }
            });
            black_box(sum);
        });
        black_box(word);
        locked / f64::from(LOCKED) / (plain / f64::from(PLAIN))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks for so long at a process of which so many threads run; the times at which steps were.
    fn watch(lulls: &mut Lulls, at: &mut (Duration, Duration), seconds: f64, threads: f64) -> Vec<(f64, Step)> {
        let mut steps = Vec::new();
        let end = at.0 + Duration::from_secs_f64(seconds);
        let began = at.0;
        while at.0 < end {
            *at = (at.0 + SOON, at.1 + SOON.mul_f64(threads));
            let step = lulls.look(at.0, at.1);
            lulls.done(step, true);
            if step != Step::None {
                steps.push(((at.0 - began).as_secs_f64(), step));
            }
        }
        steps
    }

    fn begun() -> (Lulls, (Duration, Duration)) {
        let mut lulls = Lulls::new();
        let mut at = (Duration::from_secs(5), Duration::from_secs(1));
        assert_eq!(watch(&mut lulls, &mut at, 0.01, 1.0), [(0.01, Step::Begin)]);
        assert!(lulls.is_lull());
        (lulls, at)
    }

    #[test]
    fn one_thread_is_a_lull_for_ever() {
        let (mut lulls, mut at) = begun();
        assert_eq!(watch(&mut lulls, &mut at, 100.0, 1.0), []);
        assert_eq!(watch(&mut lulls, &mut at, 100.0, 1.04), []);
        let (begun, total) = lulls.sums();
        assert_eq!((begun, total.as_secs()), (1, 200));
    }

    #[test]
    fn a_tick_that_comes_late_ends_none() {
        let (mut lulls, (mut now, used)) = begun();
        for look in 1..1000 {
            now += SOON;
            assert_eq!(lulls.look(now, used + 2 * SOON * (look / 2)), Step::None);
        }
    }

    #[test]
    fn a_second_thread_ends_it_soon_and_more_sooner() {
        let [two, three, five] = [2.0, 3.0, 5.0].map(|threads| {
            let (mut lulls, mut at) = begun();
            let steps = watch(&mut lulls, &mut at, 2.0, threads);
            let [(when, Step::End)] = steps[..] else { panic!("{steps:?}") };
            when
        });
        assert!(two <= 0.0151 && three <= 0.0101 && five <= 0.0051, "{two} {three} {five}");
        let (mut lulls, mut at) = begun();
        let [(when, Step::End)] = watch(&mut lulls, &mut at, 0.2, 1.2)[..] else { panic!("another fifth of a thread") };
        assert!(when < 0.1);
    }

    #[test]
    fn it_comes_back_later_and_later_where_threads_alternate() {
        let (mut lulls, mut at) = begun();
        let mut waits = Vec::new();
        for _ in 0..12 {
            watch(&mut lulls, &mut at, 0.1, 2.0);
            assert!(!lulls.is_lull());
            let mut waited = 0.0;
            while !lulls.is_lull() {
                watch(&mut lulls, &mut at, 0.005, 1.0);
                waited += 0.005;
            }
            waits.push(waited);
        }
        assert!(waits[0] < 0.11 && waits.is_sorted() && waits[11] > 3.0 && waits[11] < 3.3, "{waits:?}");
        watch(&mut lulls, &mut at, 60.0, 1.0);
        watch(&mut lulls, &mut at, 0.1, 2.0);
        let [(when, Step::Begin)] = watch(&mut lulls, &mut at, 4.0, 1.0)[..] else { panic!("after a long one") };
        assert!(when < 0.11, "{when}");
    }

    #[test]
    fn who_does_nothing_is_looked_at_less_and_less() {
        let (mut lulls, mut at) = begun();
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push(lulls.wait().as_millis());
            at.0 += lulls.wait();
            assert_eq!(lulls.look(at.0, at.1), Step::None);
        }
        assert_eq!(waits, [5, 10, 20, 40, 80, 100, 100]);
        at = (at.0 + SOON, at.1 + SOON);
        lulls.look(at.0, at.1);
        assert_eq!(lulls.wait(), SOON);
    }

    #[test]
    fn a_forked_child_begins_anew() {
        let (mut lulls, (now, _)) = begun();
        assert_eq!(lulls.look(now + SOON, Duration::ZERO), Step::None);
        let mut at = (now + SOON, Duration::ZERO);
        let [(_, Step::End)] = watch(&mut lulls, &mut at, 0.1, 2.0)[..] else { panic!("it is watched") };
    }

    #[test]
    fn what_cannot_be_done_is_tried_again_a_while_later() {
        let (mut lulls, mut at) = begun();
        let mut tries = 0;
        for _ in 0..700 {
            at = (at.0 + SOON, at.1 + 2 * SOON);
            let step = lulls.look(at.0, at.1);
            if step == Step::End {
                tries += 1;
                lulls.done(step, false);
                assert!(lulls.is_lull());
            }
        }
        assert!((3..=5).contains(&tries), "{tries} in 3.5 seconds");
    }

    #[test]
    fn a_lull_that_could_not_begin_is_tried_again_while_one_thread_runs() {
        let mut lulls = Lulls::new();
        let mut at = (Duration::ZERO, Duration::ZERO);
        let mut tries = Vec::new();
        for _ in 0..700 {
            at = (at.0 + SOON, at.1 + SOON);
            let step = lulls.look(at.0, at.1);
            if step == Step::Begin {
                tries.push(at.0.as_secs_f64());
                lulls.done(step, tries.len() == 3);
            }
        }
        assert_eq!(tries.len(), 3, "{tries:?}");
        assert!(tries[1] - tries[0] >= 1.0 && tries[1] - tries[0] < 1.02 && lulls.is_lull());
    }

    #[test]
    fn what_is_held_stays() {
        let (mut lulls, mut at) = begun();
        lulls.hold();
        assert_eq!(watch(&mut lulls, &mut at, 1.0, 2.0), []);
        assert!(lulls.is_lull());
    }

    #[test]
    fn a_locked_addition_has_a_price() {
        let price = price();
        assert!(price > 1.5 && price < 60.0, "{price}");
    }
}
