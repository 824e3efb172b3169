//! The control port's pure parts.

#[path = "../../src/tor/control/error.rs"]
pub mod error;
#[path = "../../src/tor/control/lines.rs"]
pub mod lines;
#[path = "../../src/tor/control/protocol_info.rs"]
pub mod protocol_info;
#[path = "../../src/tor/control/reply.rs"]
pub mod reply;
