//! A recorder's way to the bytes.

use std::io::Write;

use flate2::write::GzEncoder;
use flate2::Compression;

use super::format::{
    fold, kind, op, put, IMMORTAL, MAGIC, MOST_ABOUT, MOST_EVENTS, MOST_INFLATED, MOST_OBJECTS, MOST_RECORD, MOST_TEXT,
    MOST_THREADS, OP_BITS, VERSION,
};
use super::{Error, Event, Number, Object};

/// Content after which a record is closed: far enough below [`MOST_RECORD`] for
/// one more entry.
const FULL: usize = MOST_RECORD - 64;

/// Writes a trace, a record at a time. What is written is compressed at once, so
/// that a recorder needs no memory for what it has handed over.
#[derive(Debug)]
pub struct Writer {
    to: GzEncoder<Vec<u8>>,
    inflated: u64,
    about: usize,
    threads: u64,
    objects: u64,
    events: u64,
    address: u64,
}

impl Writer {
    /// An empty trace.
    ///
    /// # Errors
    ///
    /// None in practice: the bytes go to memory.
    pub fn new() -> Result<Writer, Error> {
        let to = GzEncoder::new(Vec::new(), Compression::default());
        let mut writer = Writer { to, inflated: 0, about: 0, threads: 0, objects: 0, events: 0, address: 0 };
        let mut head = MAGIC.to_vec();
        put(VERSION, &mut head);
        writer.bytes(&head)?;
        Ok(writer)
    }

    /// Says something of the recording.
    ///
    /// # Errors
    ///
    /// `TooLarge` where a name or a text is too long, or there are too many.
    pub fn about(&mut self, name: &str, text: &str) -> Result<(), Error> {
        if self.about >= MOST_ABOUT {
            return Err(Error::TooLarge("things said about the recording"));
        }
        self.about += 1;
        let mut content = Vec::new();
        put_text(name, &mut content)?;
        put_text(text, &mut content)?;
        self.record(kind::ABOUT, &content)
    }

    /// The next thread; returns its number.
    ///
    /// # Errors
    ///
    /// `TooLarge` where there are too many, or the name is too long.
    pub fn thread(&mut self, name: &str, start_ns: u64) -> Result<u32, Error> {
        if self.threads >= MOST_THREADS as u64 {
            return Err(Error::TooLarge("threads"));
        }
        let mut content = Vec::new();
        put(start_ns, &mut content);
        put_text(name, &mut content)?;
        self.record(kind::THREAD, &content)?;
        self.threads += 1;
        Ok(self.threads as u32 - 1)
    }

    /// The next objects; returns the number of the first. Owners must be threads
    /// by the end of the trace.
    ///
    /// # Errors
    ///
    /// `TooLarge` where there are too many.
    pub fn objects(&mut self, objects: &[Object]) -> Result<Number, Error> {
        let first = self.objects;
        if first + objects.len() as u64 > MOST_OBJECTS as u64 {
            return Err(Error::TooLarge("objects"));
        }
        let mut content = Vec::new();
        for object in objects {
            // Objects of one kind lie side by side.
            put(fold(object.address.wrapping_sub(self.address) as i64), &mut content);
            put(object.owner.map_or(0, |owner| u64::from(owner) + 1), &mut content);
            put(if object.immortal { IMMORTAL } else { 0 }, &mut content);
            self.address = object.address;
            if content.len() > FULL {
                self.record(kind::OBJECTS, &content)?;
                content.clear();
            }
        }
        self.objects += objects.len() as u64;
        self.record_unless_empty(kind::OBJECTS, &content)?;
        Ok(first as Number)
    }

    /// What a thread did next. Its objects have been written.
    ///
    /// # Errors
    ///
    /// `Unknown` for a thread or an object that has not been written; `TooLarge`
    /// where there are too many.
    pub fn events(&mut self, thread: u32, events: &[Event]) -> Result<(), Error> {
        self.check_thread(thread)?;
        if self.events + events.len() as u64 > MOST_EVENTS {
            return Err(Error::TooLarge("events"));
        }
        let mut content = Vec::new();
        let mut before = 0;
        for event in events {
            if content.len() > FULL {
                self.record(kind::EVENTS, &content)?;
                content.clear();
            }
            if content.is_empty() {
                put(u64::from(thread), &mut content);
                before = 0;
            }
            let (object, op) = match *event {
                Event::Increment(object) => (object, op::INCREMENT),
                Event::Decrement(object) => (object, op::DECREMENT),
                Event::Death(object) => (object, op::DEATH),
                Event::Work(nanoseconds) => {
                    put(u64::from(nanoseconds) << OP_BITS | op::WORK, &mut content);
                    continue;
                }
            };
            if u64::from(object) >= self.objects {
                return Err(Error::Unknown("an object"));
            }
            put(fold(i64::from(object) - before) << OP_BITS | op, &mut content);
            before = i64::from(object);
        }
        self.events += events.len() as u64;
        self.record_unless_empty(kind::EVENTS, &content)
    }

    /// So many events of a thread were not recorded.
    ///
    /// # Errors
    ///
    /// `Unknown` for a thread that has not been written.
    pub fn lost(&mut self, thread: u32, count: u64) -> Result<(), Error> {
        self.check_thread(thread)?;
        if count == 0 {
            return Ok(());
        }
        let mut content = Vec::new();
        put(u64::from(thread), &mut content);
        put(count, &mut content);
        self.record(kind::LOST, &content)
    }

    /// The bytes of the whole.
    ///
    /// # Errors
    ///
    /// `TooLarge` where that is more than a trace may be.
    pub fn finish(mut self) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        for sum in [self.threads, self.objects, self.events] {
            put(sum, &mut content);
        }
        self.record(kind::END, &content)?;
        self.to.finish().map_err(|error| Error::Compression(error.to_string()))
    }

    fn check_thread(&self, thread: u32) -> Result<(), Error> {
        if u64::from(thread) < self.threads {
            Ok(())
        } else {
            Err(Error::Unknown("a thread"))
        }
    }

    fn record_unless_empty(&mut self, kind: u8, content: &[u8]) -> Result<(), Error> {
        if content.is_empty() {
            return Ok(());
        }
        self.record(kind, content)
    }

    fn record(&mut self, kind: u8, content: &[u8]) -> Result<(), Error> {
        let mut head = vec![kind];
        put(content.len() as u64, &mut head);
        self.bytes(&head)?;
        self.bytes(content)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.inflated += bytes.len() as u64;
        if self.inflated > MOST_INFLATED {
            return Err(Error::TooLarge("bytes"));
        }
        self.to.write_all(bytes).map_err(|error| Error::Compression(error.to_string()))
    }
}

fn put_text(text: &str, to: &mut Vec<u8>) -> Result<(), Error> {
    if text.len() > MOST_TEXT {
        return Err(Error::TooLarge("text"));
    }
    put(text.len() as u64, to);
    to.extend_from_slice(text.as_bytes());
    Ok(())
}
