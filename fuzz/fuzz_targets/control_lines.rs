//! Any bytes on a control connection, in reads of any size: framing, replies and events, PROTOCOLINFO.
//!
//!     RUSTC_BOOTSTRAP=1 cargo fuzz run control_lines

#![no_main]

use libfuzzer_sys::fuzz_target;
use perfd_fuzz::control::lines::{LINE_LIMIT, Lines};
use perfd_fuzz::control::protocol_info::protocol_info;
use perfd_fuzz::control::reply::Reply;
use perfd_fuzz::control::reply::{Heard, Hearing, TooLong};

fuzz_target!(|input: &[u8]| {
    // The first byte says how long the reads are.
    let Some((size, bytes)) = input.split_first() else { return };
    let whole = hear(bytes, bytes.len().max(1));
    assert_eq!(whole, hear(bytes, usize::from(*size).max(1)), "what is heard depends on where reads end");
    for reply in whole.replies.iter().flatten() {
        let _ = protocol_info(reply);
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = protocol_info(&Reply { code: 250, lines: text.lines().map(str::to_owned).collect() });
});

#[derive(Debug, Default, PartialEq)]
struct All {
    events: Vec<Vec<u8>>,
    replies: Vec<Result<Reply, TooLong>>,
    malformed: bool,
}

fn hear(bytes: &[u8], read: usize) -> All {
    let mut all = All::default();
    let (mut lines, mut hearing) = (Lines::default(), Hearing::default());
    for mut piece in bytes.chunks(read) {
        while !piece.is_empty() {
            let room = lines.room();
            let count = piece.len().min(room.len());
            room[..count].copy_from_slice(&piece[..count]);
            lines.filled(count);
            piece = &piece[count..];
            assert!(lines.size() <= LINE_LIMIT + 2);
            while let Some(line) = lines.next_line() {
                match hearing.hear(line) {
                    Ok(Heard::Nothing) => {}
                    Ok(Heard::Event(text)) => all.events.push(text.to_vec()),
                    Ok(Heard::Reply(reply)) => all.replies.push(reply),
                    Err(_) => {
                        all.malformed = true;
                        return all;
                    }
                }
            }
        }
    }
    all
}
