//! The format of traces: what is written is read, and what is damaged is refused.

use std::collections::BTreeMap;
use std::io::Write;

use flate2::write::GzEncoder;
use flate2::Compression;
use proptest::prelude::*;
use refbuf::lab::trace::{Error, Event, Object, Thread, Trace, Writer, MOST_TEXT};

fn event(objects: usize) -> impl Strategy<Value = Event> {
    let object = 0..objects as u32;
    prop_oneof![
        object.clone().prop_map(Event::Increment),
        object.clone().prop_map(Event::Decrement),
        object.prop_map(Event::Death),
        any::<u32>().prop_map(Event::Work),
    ]
}

fn thread(objects: usize) -> impl Strategy<Value = Thread> {
    (".{0,12}", any::<u64>(), proptest::collection::vec(event(objects), 0..200), any::<u64>())
        .prop_map(|(name, start_ns, events, lost)| Thread { name, start_ns, events, lost })
}

fn trace() -> impl Strategy<Value = Trace> {
    let about = proptest::collection::btree_map(".{0,8}", ".{0,20}", 0..4);
    (about, 1..5usize, 1..40usize).prop_flat_map(|(about, threads, objects)| {
        let owner = proptest::option::of(0..threads as u32);
        let object = (any::<u64>(), owner, any::<bool>()).prop_map(|(address, owner, immortal)| Object {
            address,
            owner,
            immortal,
        });
        let threads = proptest::collection::vec(thread(objects), threads);
        let objects = proptest::collection::vec(object, objects);
        (threads, objects).prop_map(move |(threads, objects)| Trace { about: about.clone(), threads, objects })
    })
}

proptest! {
    #![proptest_config(crate::at_most(128))]

    #[test]
    fn what_is_written_is_read(trace in trace()) {
        let bytes = trace.write().expect("within the limits");
        prop_assert_eq!(Trace::read(&bytes), Ok(trace));
    }

    #[test]
    fn a_trace_that_is_cut_off_is_refused(trace in trace(), at in 0.0..1.0f64) {
        let bytes = trace.write().expect("within the limits");
        let cut = &bytes[..(bytes.len() as f64 * at) as usize];
        prop_assert!(matches!(Trace::read(cut), Err(Error::CutOff | Error::Compression(_))));
    }

    #[test]
    fn a_trace_with_a_wrong_byte_is_never_read_as_another(trace in trace(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = trace.write().expect("within the limits");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // Some bits mean nothing to a reader: the gzip header's time, the padding before a stored block and
        // after the last (RFC 1951, 3.2.4), a match's distance where the same bytes occur twice.
        if let Ok(read) = Trace::read(&bytes) {
            prop_assert_eq!(read, trace);
        }
    }

    #[test]
    fn a_trace_with_a_wrong_checksum_or_length_is_refused(trace in trace(), from_end in 1..=8usize, bit in 0..8u32) {
        let mut bytes = trace.write().expect("within the limits");
        let at = bytes.len() - from_end;
        bytes[at] ^= 1 << bit;
        prop_assert!(matches!(Trace::read(&bytes), Err(Error::Compression(_))));
    }

    #[test]
    fn records_of_any_content_are_read_or_refused(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Trace::read(&compressed(&content));
        let _ = Trace::read(&content);
    }

    #[test]
    fn records_of_known_kinds_are_read_or_refused(
        records in proptest::collection::vec((0..8u8, proptest::collection::vec(any::<u8>(), 0..40)), 0..12),
    ) {
        let mut content = Vec::new();
        for (kind, bytes) in records {
            content.extend([kind, bytes.len() as u8]);
            content.extend(bytes);
        }
        let _ = Trace::read(&compressed(&content));
    }
}

/// Records after the right beginning, compressed.
fn compressed(records: &[u8]) -> Vec<u8> {
    let mut to = GzEncoder::new(Vec::new(), Compression::fast());
    to.write_all(b"refbuf trace\n\x01").expect("memory");
    to.write_all(records).expect("memory");
    to.finish().expect("memory")
}

/// The bytes of docs/TRACE.md's example.
const EXAMPLE: &[u8] = &[
    1, 14, 8, b'w', b'o', b'r', b'k', b'l', b'o', b'a', b'd', 4, b'm', b'i', b'n', b'e', // about
    2, 6, 0, 4, b'm', b'a', b'i', b'n', // thread 0
    2, 6, 7, 4, b't', b'w', b'o', b'!', // thread 1, 7 ns later
    3, 7, 0x80, 0x40, 1, 0, 0x1F, 0, 1, // objects: at 0x1000, made by thread 0; 16 below, maker unknown, immortal
    4, 5, 1, 0x08, 0x27, 0x01, 0x06, // thread 1: +object 1, 9 ns of work, -object 1, object 0 dies
    200, 2, 1, 2, // a kind that a reader skips
    5, 2, 1, 3, // thread 1 lost three events
    6, 3, 2, 2, 4, // the sums
];

#[test]
fn the_documented_bytes_are_what_the_document_says() {
    let expected = Trace {
        about: BTreeMap::from([("workload".into(), "mine".into())]),
        threads: vec![
            Thread { name: "main".into(), ..Thread::default() },
            Thread {
                name: "two!".into(),
                start_ns: 7,
                events: vec![Event::Increment(1), Event::Work(9), Event::Decrement(1), Event::Death(0)],
                lost: 3,
            },
        ],
        objects: vec![
            Object { address: 0x1000, owner: Some(0), immortal: false },
            Object { address: 0xFF0, owner: None, immortal: true },
        ],
    };
    assert_eq!(Trace::read(&compressed(EXAMPLE)), Ok(expected.clone()));
    assert_eq!(Trace::read(&expected.write().expect("small")), Ok(expected));
}

#[test]
fn each_defect_has_its_name() {
    let end = |threads, objects, events| [6, 3, threads, objects, events];
    let read = |records: &[&[u8]]| Trace::read(&compressed(&records.concat()));
    let main: &[u8] = &[2, 2, 0, 0];
    assert_eq!(read(&[&end(0, 0, 0)]), Ok(Trace::default()));
    assert_eq!(read(&[]), Err(Error::CutOff));
    assert_eq!(read(&[main]), Err(Error::CutOff));
    assert_eq!(read(&[&end(1, 0, 0)]), Err(Error::Sums));
    assert_eq!(read(&[main, &end(0, 0, 0)]), Err(Error::Sums));
    assert_eq!(read(&[&end(0, 0, 0), &[0]]), Err(Error::Trailing));
    assert_eq!(read(&[&[9, 0]]), Err(Error::UnknownRecord(9)));
    assert_eq!(read(&[&[4, 1, 0]]), Err(Error::Unknown("a thread")));
    assert_eq!(read(&[main, &[4, 2, 0, 0]]), Err(Error::Unknown("an object")));
    assert_eq!(read(&[main, &[3, 3, 0, 3, 0], &end(1, 1, 0)]), Err(Error::Unknown("a thread")));
    assert_eq!(read(&[&[2, 3, 0, 1, 0xFF]]), Err(Error::Malformed("thread")));
    assert_eq!(read(&[&[3, 1, 0x80]]), Err(Error::Malformed("object")));
    assert_eq!(read(&[&[1, 3, 0x81, 0x80, 0x01]]), Err(Error::TooLarge("text")));
    // A record that claims two megabytes.
    assert_eq!(read(&[&[1, 0x80, 0x80, 0x80, 1]]), Err(Error::TooLarge("bytes in a record")));
    let mut twice = compressed(&end(0, 0, 0));
    twice.extend(compressed(&end(0, 0, 0)));
    assert_eq!(Trace::read(&twice), Err(Error::Trailing));
    assert!(matches!(Trace::read(b"no gzip at all"), Err(Error::Compression(_))));
    assert!(matches!(Trace::read(b""), Err(Error::Compression(_))));
    let mut other = GzEncoder::new(Vec::new(), Compression::fast());
    other.write_all(b"something else, well compressed").expect("memory");
    assert_eq!(Trace::read(&other.finish().expect("memory")), Err(Error::NotATrace));
    let mut later = GzEncoder::new(Vec::new(), Compression::fast());
    later.write_all(b"refbuf trace\n\x02").expect("memory");
    assert_eq!(Trace::read(&later.finish().expect("memory")), Err(Error::Version(2)));
}

#[test]
fn a_writer_refuses_what_a_reader_would() {
    let mut writer = Writer::new().expect("memory");
    assert_eq!(writer.events(0, &[]), Err(Error::Unknown("a thread")));
    assert_eq!(writer.lost(0, 1), Err(Error::Unknown("a thread")));
    let thread = writer.thread("t", 0).expect("one");
    assert_eq!(writer.events(thread, &[Event::Increment(0)]), Err(Error::Unknown("an object")));
    assert_eq!(writer.about("x", &"y".repeat(MOST_TEXT + 1)), Err(Error::TooLarge("text")));
    assert_eq!(writer.thread(&"y".repeat(MOST_TEXT + 1), 0), Err(Error::TooLarge("text")));
}

#[test]
fn long_threads_take_several_records_and_little_room() {
    let objects: Vec<_> =
        (0..1000).map(|n| Object { address: 0x7F00_0000_0000 + n * 32, owner: None, immortal: false }).collect();
    let pair = |n: u32| [Event::Increment(n * 7 % 1000), Event::Work(n), Event::Decrement(n * 7 % 1000)];
    let events: Vec<_> = (0..200_000).flat_map(pair).collect();
    let threads = vec![Thread { events, ..Thread::default() }];
    let trace = Trace { threads, objects, ..Trace::default() };
    let bytes = trace.write().expect("within the limits");
    assert!(bytes.len() < 4 * 200_000, "{} bytes for 200,000 pairs", bytes.len());
    assert_eq!(Trace::read(&bytes), Ok(trace));
}
