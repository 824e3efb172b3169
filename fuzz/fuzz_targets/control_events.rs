//! Any events on a control connection: noted in a book, gathered for a run, and derived.
//!
//!     RUSTC_BOOTSTRAP=1 cargo fuzz run control_events

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use perfd_fuzz::circuit::book::Book;
use perfd_fuzz::circuit::evidence::{RunKey, gather, loose, nothing};
use perfd_fuzz::circuit::{CircuitData, Evidence, derive, derive_loose};
use perfd_fuzz::clock::UnixMicros;

fuzz_target!(|input: &[u8]| {
    let text = String::from_utf8_lossy(input);
    // As evidence that somebody else wrote.
    derive(&Evidence(text.clone().into_owned()));

    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(0));
    for (i, line) in text.lines().enumerate() {
        let at = begin + Duration::from_millis(i as u64);
        match line.strip_prefix('+') {
            Some(found) => book.found(at, found),
            None => {
                book.note(at, line);
            }
        }
    }
    let run = |user: Option<&str>, upload| RunKey {
        user: user.map(str::to_owned),
        local: Some(([127, 0, 0, 1], 1).into()),
        start: begin + Duration::from_millis(1),
        start_wall: UnixMicros(0),
        ended: begin + Duration::from_secs(1),
        onion: Some("a".to_owned()),
        upload,
    };
    for run in [run(Some("u"), false), run(Some("u"), true), run(None, false)] {
        let data = derive(&gather(&book, Some(&book), &run));
        let json = serde_json::to_string(&data).expect("plain data");
        assert_eq!(serde_json::from_str::<CircuitData>(&json).expect("as it was written"), data);
        derive(&nothing(&run));
    }
    book.take_loose().0.iter().for_each(|record| drop(loose(record).map(|evidence| derive_loose(&evidence))));
    book.open_circuits();
});
