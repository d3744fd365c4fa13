//! Measuring what things cost on this machine.

use crate::core::{Address, Buffer, Counted, Shape};
use crossbeam_utils::CachePadded;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Instant;

use super::costs::Costs;

/// Cells that single-threaded loops go round: few enough for the first cache, and
/// so many that a count need not wait for the one before it.
const CELLS: usize = 16;
/// Counts of one measurement.
const COUNTS: usize = 200_000;
/// The fastest of so many is what an undisturbed processor does.
const REPEATS: usize = 7;
/// And of what two threads do, until so many are undisturbed, no more than these.
const MOST_REPEATS: usize = 60;
/// A thread with that share of a CPU has one.
const ENOUGH_CPU: f64 = 0.97;
/// Lines that one thread writes and the other then wants.
const HANDED: usize = 512;
/// Pairs of two threads on these lines.
const FOUGHT_FOR: usize = 50_000;
/// Phases of a measurement in which one thread writes, and the other reads.
const PHASES: usize = 40;
/// Lines that no cache of one core has room for.
const FAR: usize = 1 << 20;
/// Of these a measurement visits so many.
const VISITED: usize = 20_000;
/// Times that each of two threads passes a line on.
const HANDOVERS: usize = 500;
/// Measurements of that, in a row.
const BATCHES: usize = 30;
/// Counts of two threads on one line.
const HAMMERED: u64 = 20_000;
/// Turns that two threads take.
const TURNS: usize = 500;
/// A kept line is never kept longer, whatever the measurements say.
const LONGEST_HOLD: f64 = 2_000.0;

/// A line to count on.
type Cell = CachePadded<AtomicU64>;

/// Measures all costs: about a second. With one CPU, what takes two is
/// [`Costs::ASSUMED`]. Also whether both CPUs were to be had for it: else other work
/// has spoilt what two threads measure.
pub fn calibrate(cpus: usize) -> (Costs, bool) {
    let mut costs = Costs::ASSUMED;
    let mut undisturbed = true;
    costs.hit = fastest(read_headers);
    costs.plain = fastest(count_plainly);
    costs.table = fastest(count_in_a_table);
    costs.atomic = fastest(count_atomically);
    // A pair is one of each.
    costs.swap = (2.0 * fastest(add_and_swap) - costs.atomic).max(costs.atomic);
    costs.swap_apart = (2.0 * fastest(add_all_and_swap_all) - costs.atomic).max(costs.atomic);
    costs.surprise = fastest(|| surprise(costs.table, costs.atomic));
    let far: Vec<Cell> = cells(FAR);
    costs.fill = (fastest(|| visit(&far, pair)) - costs.atomic - costs.swap).max(0.0);
    costs.read_fill = (fastest(|| visit(&far, read)) - costs.hit).max(0.0);
    drop(far);
    if cpus > 1 {
        let transfer = fastest(hand_one_line_over);
        costs.transfer = (transfer - costs.atomic).max(1.0);
        let pair = usual(&mut undisturbed, count_on_the_same_lines);
        costs.transfer_ahead = (2.0 * (pair - costs.atomic - costs.swap)).clamp(1.0, costs.transfer);
        costs.read_transfer = (usual(&mut undisturbed, || hand_lines_over(read)) - costs.hit).max(1.0);
        costs.hold = hold(costs.transfer, costs.atomic, usual(&mut undisturbed, || hammer_one_line(two_counts)));
        let alone = (costs.atomic + costs.swap) / 2.0;
        costs.hold_looked = hold(costs.transfer, alone, usual(&mut undisturbed, || hammer_one_line(look_and_pair)));
        costs.handover = fastest(take_turns);
    }
    (costs, undisturbed)
}

/// Two threads that count on one line alternate: each time a transfer, then counts
/// for as long as the line is kept, which begin one after the other until it goes:
/// in the mean half a count more than the time has room for. `contended` is what a
/// count then takes, so
///
/// ```text
/// contended = (transfer + hold) / (hold / count + 1/2)
/// ```
fn hold(transfer: f64, count: f64, contended: f64) -> f64 {
    let slower = (contended / count - 1.0).max(1e-3);
    ((transfer - contended / 2.0) / slower).clamp(count / 2.0, LONGEST_HOLD)
}

fn fastest(mut measure: impl FnMut() -> f64) -> f64 {
    (0..REPEATS).map(|_| measure()).fold(f64::INFINITY, f64::min)
}

/// Of what two threads do: the median of those measurements in which each of them
/// had a CPU all the time, or of all, where other work never lets them, and then
/// `undisturbed` becomes false.
fn usual(undisturbed: &mut bool, mut measure: impl FnMut() -> (f64, bool)) -> f64 {
    let (mut good, mut all) = (Vec::new(), Vec::new());
    while good.len() < REPEATS && all.len() < MOST_REPEATS {
        let (found, is_good) = measure();
        all.push(found);
        if is_good {
            good.push(found);
        }
    }
    *undisturbed &= !good.is_empty();
    median(if good.is_empty() { all } else { good })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What two threads found, each on a CPU of its own where the system lets us say
/// so, and whether both had theirs all the time.
fn both<T: Send>(one: impl FnOnce() -> T + Send, other: impl FnOnce() -> T + Send) -> (T, T, bool) {
    thread::scope(|scope| {
        let one = scope.spawn(|| on_cpu(0, one));
        let other = scope.spawn(|| on_cpu(1, other));
        let (one, other) = (one.join().expect("it does not panic"), other.join().expect("it does not panic"));
        (one.0, other.0, one.1 && other.1)
    })
}

/// Works on the n-th of the CPUs; says whether it had that all the time.
fn on_cpu<T>(n: usize, work: impl FnOnce() -> T) -> (T, bool) {
    stay_on_cpu(n);
    let (began, had) = (Instant::now(), cpu_seconds());
    let result = work();
    let wall = began.elapsed().as_secs_f64();
    let undisturbed = cpu_seconds() - had >= ENOUGH_CPU * wall;
    (result, undisturbed)
}

/// CPU time of the calling thread.
fn cpu_seconds() -> f64 {
    #[cfg(unix)]
    {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the struct is ours.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    }
    #[cfg(not(unix))]
    f64::INFINITY
}

/// Keeps the calling thread on the n-th of the CPUs that it may use.
#[cfg(target_os = "linux")]
fn stay_on_cpu(n: usize) {
    // SAFETY: the set is ours, plain old data, and as large as we say.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size, &mut allowed) != 0 {
            return;
        }
        let cpus = (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &allowed));
        if let Some(cpu) = cpus.into_iter().nth(n) {
            let mut own: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut own);
            // Where it fails, the measurement is what it is.
            libc::sched_setaffinity(0, size, &own);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn stay_on_cpu(_n: usize) {}

fn cells(count: usize) -> Vec<Cell> {
    (0..count).map(|_| CachePadded::new(AtomicU64::new(0))).collect()
}

/// Nanoseconds of one of `times`, for all of which `work` is called.
fn time(times: usize, work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_nanos() as f64 / times as f64
}

fn count(cell: &AtomicU64) {
    cell.fetch_add(1, Ordering::Relaxed);
}

/// Up, and down by a load and a swap, as CPython's own.
fn pair(cell: &AtomicU64) {
    count(cell);
    swap(cell);
}

/// The same, and each looks at the line first, and at what it finds.
fn look_and_pair(cell: &AtomicU64) {
    if cell.load(Ordering::Relaxed) != u64::MAX {
        count(cell);
    }
    if cell.load(Ordering::Relaxed) != u64::MAX {
        swap(cell);
    }
}

fn two_counts(cell: &AtomicU64) {
    count(cell);
    count(cell);
}

fn swap(cell: &AtomicU64) {
    let mut before = cell.load(Ordering::Relaxed);
    while let Err(now) = cell.compare_exchange_weak(before, before.wrapping_sub(1), Ordering::AcqRel, Ordering::Relaxed)
    {
        before = now;
    }
}

fn read(cell: &AtomicU64) {
    black_box(cell.load(Ordering::Relaxed));
}

/// One up, one down, as the pairs of a program are.
fn round(cells: &[Cell], each: impl Fn(&AtomicU64, bool)) -> f64 {
    let cells = black_box(cells);
    time(COUNTS, || {
        for pair in 0..COUNTS / 2 {
            let cell = &cells[pair % CELLS];
            each(cell, true);
            each(cell, false);
        }
    })
}

fn read_headers() -> f64 {
    round(&cells(CELLS), |cell, _| read(cell))
}

fn count_plainly() -> f64 {
    round(&cells(CELLS), |cell, up| {
        let step = if up { 1 } else { u64::MAX };
        // Plain: one writer.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(step), Ordering::Relaxed);
    })
}

fn count_atomically() -> f64 {
    round(&cells(CELLS), |cell, up| {
        if up {
            count(cell);
        } else {
            cell.fetch_sub(1, Ordering::Relaxed);
        }
    })
}

fn add_and_swap() -> f64 {
    round(&cells(CELLS), |cell, up| {
        if up {
            count(cell);
        } else {
            swap(cell);
        }
    })
}

/// As calls do with their constants: all up, then all down.
fn add_all_and_swap_all() -> f64 {
    let cells = cells(CELLS);
    let cells = black_box(&cells);
    time(COUNTS, || {
        for _ in 0..COUNTS / (2 * CELLS) {
            cells.iter().for_each(|cell| count(cell));
            cells.iter().for_each(|cell| swap(cell));
        }
    })
}

/// Objects that have references without end.
enum Endless {}

// SAFETY: there is nothing to touch.
unsafe impl Counted for Endless {
    unsafe fn add(_: Address, _: u32) {}

    unsafe fn take(_: Address, _: u32) -> u32 {
        0
    }

    unsafe fn has_others(_: Address) -> bool {
        true
    }

    unsafe fn release(_: Address) {}
}

fn count_in_a_table() -> f64 {
    let buffer = Buffer::new(Shape::DEFAULT);
    let objects: Vec<Address> = (1..=CELLS).map(|n| 0x7F00_0000_0000 + n * 48).collect();
    for object in &objects {
        // SAFETY: these objects are only numbers, and this thread owns the buffer.
        let _ = unsafe { buffer.increment_missed::<Endless>(*object, || true) };
    }
    let objects = black_box(objects);
    time(COUNTS, || {
        for pair in 0..COUNTS / 2 {
            let object = objects[pair % CELLS];
            black_box(!buffer.skips() && buffer.spend(object));
            black_box(!buffer.skips() && buffer.refund(object));
        }
    })
}

/// A table with one pair of slots, and a third object that is not let in, in an
/// order that nothing foresees: what is not look-ups and atomic counts is surprise.
fn surprise(table: f64, atomic: f64) -> f64 {
    let buffer = Buffer::new(Shape { slots: 2, ..Shape::DEFAULT });
    let objects: [Address; 3] = [0x7F00_0000_0000, 0x7F00_0000_0040, 0x7F00_0000_0080];
    for object in &objects[..2] {
        // SAFETY: these objects are only numbers, and this thread owns the buffer.
        let _ = unsafe { buffer.increment_missed::<Endless>(*object, || true) };
    }
    let mut random = 1u64;
    let order: Vec<usize> = (0..COUNTS / 2)
        .map(|_| {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            // The third for one in four.
            [0, 1, 2, 0, 1, 2, 0, 1][(random >> 61) as usize]
        })
        .collect();
    let misses = order.iter().filter(|object| **object == 2).count() as f64;
    let surprises = order.windows(2).filter(|two| (two[0] == 2) != (two[1] == 2)).count() as f64;
    let cell = &cells(1)[0];
    let taken = time(1, || {
        for object in black_box(&order) {
            let object = objects[*object];
            if buffer.skips() || !buffer.spend(object) {
                black_box(buffer.denies(object));
                count(cell);
            }
            if buffer.skips() || !buffer.refund(object) {
                black_box(buffer.denies(object));
                count(cell);
            }
        }
    });
    ((taken - COUNTS as f64 * table - 2.0 * misses * atomic) / surprises).max(0.0)
}

/// Lines in an order that no prefetcher follows.
fn visit(far: &[Cell], each: fn(&AtomicU64)) -> f64 {
    // Goes on with each measurement: those of the last may be in the cache now.
    static RANDOM: AtomicU64 = AtomicU64::new(1);
    let mut random = RANDOM.load(Ordering::Relaxed);
    let taken = time(VISITED, || {
        for _ in 0..VISITED {
            random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
            each(&far[(random >> 33) as usize % far.len()]);
        }
    });
    RANDOM.store(random, Ordering::Relaxed);
    taken
}

/// Two threads pass one line to and fro; nanoseconds of one way.
fn hand_one_line_over() -> f64 {
    let turn = &cells(1)[0];
    let play = |own: u64| {
        let batch = || {
            for _ in 0..HANDOVERS {
                while turn.load(Ordering::Acquire) != own {
                    spin_loop();
                }
                turn.store(1 - own, Ordering::Release);
            }
        };
        // Short ones: whatever else runs, some have both CPUs. On one CPU they take
        // far longer, so that the fastest is undisturbed.
        (0..BATCHES).map(|_| time(2 * HANDOVERS, batch)).fold(f64::INFINITY, f64::min)
    };
    both(|| play(0), || play(1)).0
}

/// One thread writes to lines, the other then does something with each.
fn hand_lines_over(each: fn(&AtomicU64)) -> (f64, bool) {
    let lines = cells(HANDED);
    // Odd: they are written; even: they may be.
    let phase = AtomicUsize::new(0);
    let wait_for = |wanted: usize| {
        while phase.load(Ordering::Acquire) != wanted {
            spin_loop();
        }
    };
    // A stride that is odd meets each line once, without a pattern in memory.
    let walk = |each: fn(&AtomicU64)| (0..HANDED).for_each(|n| each(&lines[n * 173 % HANDED]));
    let write = || {
        for turn in 0..PHASES {
            wait_for(2 * turn);
            walk(count);
            phase.store(2 * turn + 1, Ordering::Release);
        }
        Vec::new()
    };
    let want = || {
        let phases = (0..PHASES).map(|turn| {
            wait_for(2 * turn + 1);
            let taken = time(HANDED, || walk(each));
            phase.store(2 * turn + 2, Ordering::Release);
            taken
        });
        phases.collect()
    };
    let (_, phases, undisturbed) = both(write, want);
    (median(phases), undisturbed)
}

/// Two threads count on the same lines, each in a random order of its own: a line was
/// the other thread's last, and comes from there, every second time. Nanoseconds of
/// a pair.
fn count_on_the_same_lines() -> (f64, bool) {
    let (lines, ready) = (cells(HANDED), AtomicUsize::new(0));
    let play = |seed: u64| {
        meet(&ready);
        let mut random = seed;
        time(FOUGHT_FOR, || {
            for _ in 0..FOUGHT_FOR {
                random = random.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
                look_and_pair(&lines[(random >> 33) as usize % HANDED]);
            }
        })
    };
    let (one, other, undisturbed) = both(|| play(1), || play(2));
    ((one + other) / 2.0, undisturbed)
}

/// Waits until the other thread is here.
fn meet(ready: &AtomicUsize) {
    ready.fetch_add(1, Ordering::SeqCst);
    while ready.load(Ordering::SeqCst) < 2 {
        spin_loop();
    }
}

/// Nanoseconds of a count, of both threads together; `each` counts twice.
fn hammer_one_line(each: fn(&AtomicU64)) -> (f64, bool) {
    let (cell, ready) = (&cells(1)[0], AtomicUsize::new(0));
    let both_ended = AtomicBool::new(false);
    let hammer = || {
        meet(&ready);
        let began = Instant::now();
        let mut done = 0u64;
        // Until the first is done: what the other does alone is not contended.
        while done < HAMMERED && !both_ended.load(Ordering::Relaxed) {
            (0..32).for_each(|_| each(cell));
            done += 64;
        }
        both_ended.store(true, Ordering::Relaxed);
        (done, began.elapsed().as_nanos() as f64)
    };
    let (one, other, undisturbed) = both(hammer, hammer);
    (one.1.max(other.1) / (one.0 + other.0) as f64, undisturbed)
}

/// A lock that says whose turn it is, as CPython's GIL: a mutex and a condition.
fn take_turns() -> f64 {
    let (turn, changed) = (Mutex::new(0), Condvar::new());
    let play = |own: usize| {
        for _ in 0..TURNS {
            let mut held = turn.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            while *held != own {
                held = changed.wait(held).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            *held = 1 - own;
            changed.notify_one();
        }
    };
    time(2 * TURNS, || {
        both(|| play(0), || play(1));
    })
}
