//! What a program did to reference counts: which thread, which object, which
//! operation, in each thread's order. docs/TRACE.md has the format byte by byte.
//!
//! | file | holds |
//! |---|---|
//! | [`format`](self) | kinds of records, limits, numbers as bytes |
//! | [`read`](Trace::read) | bytes to a [`Trace`]; refuses what is damaged, never panics |
//! | [`Writer`] | a recorder's way to the bytes, a record at a time |
//!
//! An object has a number of its own from its first appearance to its death. An
//! address may be used again, by an object with another number. So a trace may
//! have objects that die, and threads that start late.

mod format;
mod read;
mod write;

use std::collections::BTreeMap;
use std::fmt;

pub use format::{MOST_EVENTS, MOST_INFLATED, MOST_NANOSECONDS, MOST_OBJECTS, MOST_TEXT, MOST_THREADS};
pub use write::Writer;

/// An object's number in its trace: from 0, in the order of appearance.
pub type Number = u32;

/// One thing that a thread did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// One reference more.
    Increment(Number),
    /// One reference less.
    Decrement(Number),
    /// The object's memory is given back; nothing refers to the number any more.
    Death(Number),
    /// Other work, in nanoseconds.
    Work(u32),
}

/// What is known of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it lies.
    pub address: u64,
    /// The thread that made it, if that is one of the trace's.
    pub owner: Option<u32>,
    /// Its count is not kept.
    pub immortal: bool,
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// For people.
    pub name: String,
    /// When it started, in nanoseconds from the start of the recording.
    pub start_ns: u64,
    /// What it did, in its order.
    pub events: Vec<Event>,
    /// Events that found no room in the recorder.
    pub lost: u64,
}

impl Thread {
    /// How many increments and decrements were recorded.
    pub fn counts(&self) -> (u64, u64) {
        let count = |wanted: fn(&Event) -> bool| self.events.iter().filter(|event| wanted(event)).count() as u64;
        (count(|event| matches!(event, Event::Increment(_))), count(|event| matches!(event, Event::Decrement(_))))
    }
}

/// A recording.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// What the recorder says of it, by name.
    pub about: BTreeMap<String, String>,
    /// By their numbers.
    pub threads: Vec<Thread>,
    /// By their numbers.
    pub objects: Vec<Object>,
}

impl Trace {
    /// Reads a file's content.
    ///
    /// # Errors
    ///
    /// Where it is damaged, cut off, or larger than a trace may be.
    pub fn read(bytes: &[u8]) -> Result<Trace, Error> {
        read::read(bytes)
    }

    /// Writes it, as one recorder that has it all at hand.
    ///
    /// # Errors
    ///
    /// Where it is larger than a trace may be, or refers to what it has not.
    pub fn write(&self) -> Result<Vec<u8>, Error> {
        let mut writer = Writer::new()?;
        for (name, text) in &self.about {
            writer.about(name, text)?;
        }
        for thread in &self.threads {
            writer.thread(&thread.name, thread.start_ns)?;
        }
        writer.objects(&self.objects)?;
        for (number, thread) in self.threads.iter().enumerate() {
            writer.events(number as u32, &thread.events)?;
            writer.lost(number as u32, thread.lost)?;
        }
        writer.finish()
    }

    /// Events of all threads.
    pub fn events(&self) -> u64 {
        self.threads.iter().map(|thread| thread.events.len() as u64).sum()
    }
}

/// Why bytes are no trace, or why something cannot become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not compressed as a trace is, or damaged: what the decompressor says.
    Compression(String),
    /// Compressed, but something else.
    NotATrace,
    /// A version of the format that this reader does not know.
    Version(u64),
    /// It ends before its end record.
    CutOff,
    /// Something follows the end.
    Trailing,
    /// A kind of record that this reader must not skip, and does not know.
    UnknownRecord(u8),
    /// A record's content is not what its kind says.
    Malformed(&'static str),
    /// More of something than a trace may have.
    TooLarge(&'static str),
    /// A reference to a thread or an object that the trace does not have.
    Unknown(&'static str),
    /// The sums in the end record are not those of the records.
    Sums,
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Compression(why) => write!(to, "it is not a whole gzip file ({why})"),
            Error::NotATrace => write!(to, "it is not a trace"),
            Error::Version(version) => {
                write!(to, "its format has version {version}, and this refbuf reads version {}", format::VERSION)
            }
            Error::CutOff => write!(to, "it is cut off"),
            Error::Trailing => write!(to, "something follows its end"),
            Error::UnknownRecord(kind) => write!(to, "it has a record of unknown kind {kind}"),
            Error::Malformed(what) => write!(to, "it has a malformed {what}"),
            Error::TooLarge(what) => write!(to, "it has more {what} than a trace may have"),
            Error::Unknown(what) => write!(to, "it refers to {what} that it does not have"),
            Error::Sums => write!(to, "its records and its end record do not agree"),
        }
    }
}

impl std::error::Error for Error {}
