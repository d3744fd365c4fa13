//! From bytes to a trace. Nothing is believed: a length that a file claims makes
//! no more room than the file has bytes for.

use std::io::{self, Read};

use flate2::bufread::GzDecoder;

use super::format::{
    kind, op, unfold, Content, IMMORTAL, LONGEST_NUMBER, MAGIC, MOST_ABOUT, MOST_EVENTS, MOST_INFLATED,
    MOST_NANOSECONDS, MOST_OBJECTS, MOST_RECORD, MOST_THREADS, OPTIONAL, OP_BITS, VERSION,
};
use super::{Error, Event, Number, Object, Thread, Trace};

pub(super) fn read(bytes: &[u8]) -> Result<Trace, Error> {
    read_within(bytes, MOST_INFLATED)
}

fn read_within(bytes: &[u8], most: u64) -> Result<Trace, Error> {
    let mut source = Source { from: GzDecoder::new(bytes), left: most };
    let mut magic = [0; MAGIC.len()];
    source.fill(&mut magic)?;
    if magic != *MAGIC {
        return Err(Error::NotATrace);
    }
    let version = source.number()?;
    if version != VERSION {
        return Err(Error::Version(version));
    }
    let mut reader = Reader::default();
    let mut content = Vec::new();
    loop {
        let kind = source.byte()?;
        let length = source.number()?;
        if length > MOST_RECORD as u64 {
            return Err(Error::TooLarge("bytes in a record"));
        }
        content.resize(length as usize, 0);
        source.fill(&mut content)?;
        if kind == kind::END {
            reader.check_end(Content(&content))?;
            source.check_end()?;
            return Ok(reader.trace);
        }
        reader.record(kind, Content(&content))?;
    }
}

/// The decompressed bytes, in order.
struct Source<'a> {
    from: GzDecoder<&'a [u8]>,
    /// Bytes that may still come.
    left: u64,
}

impl Source<'_> {
    fn fill(&mut self, to: &mut [u8]) -> Result<(), Error> {
        self.left = self.left.checked_sub(to.len() as u64).ok_or(Error::TooLarge("bytes"))?;
        self.from.read_exact(to).map_err(|error| self.explain(&error))
    }

    fn byte(&mut self) -> Result<u8, Error> {
        let mut byte = [0];
        self.fill(&mut byte)?;
        Ok(byte[0])
    }

    fn number(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; LONGEST_NUMBER];
        for byte in &mut bytes {
            *byte = self.byte()?;
            if *byte & 0x80 == 0 {
                break;
            }
        }
        Content(&bytes).number("number")
    }

    /// The compressed content is over, its checksum is right, and nothing follows.
    fn check_end(mut self) -> Result<(), Error> {
        match self.from.read(&mut [0]) {
            Ok(0) if self.from.get_ref().is_empty() => Ok(()),
            Ok(_) => Err(Error::Trailing),
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn explain(&self, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof if self.from.header().is_some() => Error::CutOff,
            _ => Error::Compression(error.to_string()),
        }
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    trace: Trace,
    events: u64,
    address: u64,
    /// The highest owner of an object, which must be a thread in the end.
    highest_owner: Option<u32>,
}

impl Reader {
    fn record(&mut self, kind: u8, content: Content<'_>) -> Result<(), Error> {
        match kind {
            kind::ABOUT => self.about(content),
            kind::THREAD => self.thread(content),
            kind::OBJECTS => self.objects(content),
            kind::EVENTS => self.events(content),
            kind::LOST => self.lost(content),
            OPTIONAL.. => Ok(()),
            _ => Err(Error::UnknownRecord(kind)),
        }
    }

    fn about(&mut self, mut content: Content<'_>) -> Result<(), Error> {
        if self.trace.about.len() >= MOST_ABOUT {
            return Err(Error::TooLarge("things said about the recording"));
        }
        let name = content.text("name")?;
        let text = content.text("text")?;
        content.end("text")?;
        self.trace.about.insert(name.to_owned(), text.to_owned());
        Ok(())
    }

    fn thread(&mut self, mut content: Content<'_>) -> Result<(), Error> {
        if self.trace.threads.len() >= MOST_THREADS {
            return Err(Error::TooLarge("threads"));
        }
        let start_ns = content.number("thread")?;
        let name = content.text("thread")?.to_owned();
        content.end("thread")?;
        self.trace.threads.push(Thread { name, start_ns, ..Thread::default() });
        Ok(())
    }

    fn objects(&mut self, mut content: Content<'_>) -> Result<(), Error> {
        while !content.is_empty() {
            if self.trace.objects.len() >= MOST_OBJECTS {
                return Err(Error::TooLarge("objects"));
            }
            self.address = self.address.wrapping_add(unfold(content.number("object")?) as u64);
            let owner = match content.number("object")? {
                0 => None,
                owner => Some(u32::try_from(owner - 1).map_err(|_| Error::Unknown("a thread"))?),
            };
            let flags = content.number("object")?;
            self.highest_owner = self.highest_owner.max(owner);
            self.trace.objects.push(Object { address: self.address, owner, immortal: flags & IMMORTAL != 0 });
        }
        Ok(())
    }

    fn events(&mut self, mut content: Content<'_>) -> Result<(), Error> {
        let Trace { threads, objects, .. } = &mut self.trace;
        let thread = find(threads, content.number("event")?)?;
        let mut before = 0i64;
        while !content.is_empty() {
            if self.events >= MOST_EVENTS {
                return Err(Error::TooLarge("events"));
            }
            self.events += 1;
            let number = content.number("event")?;
            let (op, rest) = (number & ((1 << OP_BITS) - 1), number >> OP_BITS);
            if op == op::WORK {
                if rest > MOST_NANOSECONDS {
                    return Err(Error::TooLarge("nanoseconds of work"));
                }
                thread.events.push(Event::Work(rest as u32));
                continue;
            }
            before = before.wrapping_add(unfold(rest));
            let object = Number::try_from(before).ok().filter(|object| (*object as usize) < objects.len());
            let object = object.ok_or(Error::Unknown("an object"))?;
            thread.events.push(match op {
                op::INCREMENT => Event::Increment(object),
                op::DECREMENT => Event::Decrement(object),
                _ => Event::Death(object),
            });
        }
        Ok(())
    }

    fn lost(&mut self, mut content: Content<'_>) -> Result<(), Error> {
        let thread = find(&mut self.trace.threads, content.number("loss")?)?;
        let count = content.number("loss")?;
        thread.lost = thread.lost.saturating_add(count);
        content.end("loss")
    }

    fn check_end(&self, mut content: Content<'_>) -> Result<(), Error> {
        let Trace { threads, objects, .. } = &self.trace;
        for sum in [threads.len() as u64, objects.len() as u64, self.events] {
            if content.number("end")? != sum {
                return Err(Error::Sums);
            }
        }
        content.end("end")?;
        match self.highest_owner {
            Some(owner) if owner as usize >= threads.len() => Err(Error::Unknown("a thread")),
            _ => Ok(()),
        }
    }
}

fn find(threads: &mut [Thread], number: u64) -> Result<&mut Thread, Error> {
    usize::try_from(number).ok().and_then(|number| threads.get_mut(number)).ok_or(Error::Unknown("a thread"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use flate2::Compression;

    use super::*;

    #[test]
    fn a_small_file_cannot_ask_for_much_memory() {
        let mut bomb = GzEncoder::new(Vec::new(), Compression::fast());
        bomb.write_all(b"refbuf trace\n\x01").expect("memory");
        // A kind that is skipped, with a megabyte of zeros.
        bomb.write_all(&[&[200, 0x80, 0x80, 0x40][..], &vec![0; 1 << 20]].concat()).expect("memory");
        bomb.write_all(&[6, 3, 0, 0, 0]).expect("memory");
        let bytes = bomb.finish().expect("memory");
        assert!(bytes.len() < 10_000);
        assert_eq!(read_within(&bytes, 1 << 21), Ok(Trace::default()));
        assert_eq!(read_within(&bytes, 1 << 20), Err(Error::TooLarge("bytes")));
    }
}
