//! An example of refbuf::Ref: an index of Python objects that Rayon's threads
//! search while none of them is attached to the interpreter.
//!
//! Each key has many objects, each object many keys. A search clones a reference
//! for each match and sorts them by rank; with `Py<T>` that would mean to attach
//! for every clone, with `Arc<Py<T>>` to contend for the counts of what is popular.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyList;
use rayon::prelude::*;
use refbuf::{detached, Ref};

/// An object, and how it ranks.
#[derive(Clone)]
struct Entry {
    rank: u64,
    object: Ref<PyAny>,
}

/// Objects by key.
#[pyclass(frozen)]
struct Index {
    entries: Vec<Entry>,
}

#[pymethods]
impl Index {
    /// Objects rank as they come.
    #[new]
    fn new(objects: Vec<Ref<PyAny>>) -> Index {
        let entries = objects.into_iter().enumerate();
        Index { entries: entries.map(|(rank, object)| Entry { rank: rank as u64, object }).collect() }
    }

    fn __len__(&self) -> usize {
        self.entries.len()
    }

    /// For each key, which is a number, the best of the objects that have it: an
    /// object of rank r has the key k if a hash of both says so.
    fn search<'py>(&self, py: Python<'py>, keys: Vec<u64>, best: usize) -> PyResult<Vec<Bound<'py, PyList>>> {
        let found: Vec<Vec<Entry>> =
            detached::detach(py, || keys.into_par_iter().map(|key| self.search_one(key, best)).collect());
        // Attached again: loans become references.
        found
            .into_iter()
            .map(|entries| PyList::new(py, entries.into_iter().map(|entry| entry.object.into_bound(py))))
            .collect()
    }

    /// Clones and drops every object so many times in each of so many tasks;
    /// returns how many clones that made.
    fn churn(&self, py: Python<'_>, tasks: usize, rounds: usize) -> usize {
        detached::detach(py, || {
            (0..tasks)
                .into_par_iter()
                .map(|task| {
                    let mut made = 0;
                    for round in 0..rounds {
                        let copies: Vec<_> = self.entries.iter().skip((task + round) % 3).cloned().collect();
                        made += copies.len();
                    }
                    made
                })
                .sum()
        })
    }

    /// A copy, made by one thread that is not attached and handed over by another.
    fn copied(&self, py: Python<'_>) -> Index {
        detached::detach(py, || {
            let copy = std::thread::scope(|scope| scope.spawn(|| self.entries.clone()).join());
            Index { entries: copy.unwrap_or_default() }
        })
    }
}

impl Index {
    /// Not attached.
    fn search_one(&self, key: u64, best: usize) -> Vec<Entry> {
        let has_key = |entry: &&Entry| (entry.rank ^ key).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 62 == 0;
        let mut matches: Vec<Entry> = self.entries.iter().filter(has_key).cloned().collect();
        matches.sort_by_key(|entry| std::cmp::Reverse(entry.rank));
        matches.truncate(best);
        matches
    }
}

/// A field that Python may read and set, and any thread may clone.
#[pyclass]
struct Holder {
    #[pyo3(get, set)]
    item: Ref<PyAny>,
}

#[pymethods]
impl Holder {
    #[new]
    fn new(item: Ref<PyAny>) -> Holder {
        Holder { item }
    }

    /// Clones the reference in so many threads, all held at once, and drops the
    /// clones in others.
    fn hand_around(&self, py: Python<'_>, threads: usize, each: usize) -> usize {
        let item = &self.item;
        detached::detach(py, || {
            let clones: Vec<Vec<Ref<PyAny>>> = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..threads).map(|_| scope.spawn(|| (0..each).map(|_| item.clone()).collect())).collect();
                threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
            });
            let count = clones.iter().map(Vec::len).sum();
            clones.into_par_iter().for_each(drop);
            count
        })
    }

    /// Starts a thread that clones and drops the reference for as long as the
    /// process lives, and holds one more for `seconds`.
    fn churn_for_ever(&self, seconds: f64) {
        let (item, held) = (self.item.clone(), self.item.clone());
        std::thread::spawn(move || {
            let until = Instant::now() + Duration::from_secs_f64(seconds);
            let mut held = Some(held);
            loop {
                let copies: Vec<_> = (0..100).map(|_| item.clone()).collect();
                drop(copies);
                if Instant::now() > until {
                    held = None;
                }
                std::hint::black_box(&held);
            }
        });
    }

    fn __repr__(&self) -> String {
        format!("Holder({:?})", self.item)
    }
}

/// Gives every loan back.
#[pyfunction]
fn flush_all(py: Python<'_>) {
    detached::flush_all(py);
}

/// References that objects enrolled from now on have in reserve.
#[pyfunction]
fn set_reserve(references: u32) {
    detached::set_reserve(references);
}

/// Credits that buffers hold at the moment.
#[pyfunction]
fn credits() -> u64 {
    detached::summary().totals.credits
}

/// Clones and drops so far that passed through buffers, or were turned away there.
#[pyfunction]
fn operations() -> u64 {
    let totals = detached::summary().totals;
    totals.hits() + totals.misses + totals.acquires + totals.take_ins
}

#[pymodule(gil_used = false)]
mod detached_pool {
    #[pymodule_export]
    use super::{credits, flush_all, operations, set_reserve, Holder, Index};
}
