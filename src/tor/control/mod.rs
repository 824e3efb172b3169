//! A client of tor's control port, over TCP or a Unix socket.
//!
//! [`open`] connects, [`start`] splits the connection into [`Commands`], which ask, and a [`Driver`], which does
//! all reading and writing in the task that runs it, and [`authenticate`] must be the first to ask. What comes is
//! understood in [`lines`] and [`reply`], which do no I/O; what the events say is not looked at here.

mod access;
pub mod auth;
mod cookie;
mod driver;
mod error;
pub mod lines;
pub mod protocol_info;
pub mod reply;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::ControlAddress;

pub use auth::authenticate;
pub use driver::{Commands, Driver, REPLY_DEADLINE, start};
pub use error::ControlError;
pub use protocol_info::Version;
pub use reply::Reply;

/// How long connecting may take.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Connects to a control port, within [`CONNECT_DEADLINE`].
///
/// # Errors
/// If there is no connection; the message names the address, and what may be done.
pub async fn open(address: &ControlAddress) -> Result<Connection, ControlError> {
    let connecting = async {
        match address {
            ControlAddress::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
            ControlAddress::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
        }
    };
    match timeout(CONNECT_DEADLINE, connecting).await {
        Ok(connected) => connected.map_err(|error| unreachable(address, error)),
        Err(_) => Err(ControlError::Unanswered { address: shown(address), within: CONNECT_DEADLINE }),
    }
}

fn unreachable(address: &ControlAddress, error: io::Error) -> ControlError {
    use io::ErrorKind::{ConnectionRefused, NotFound, PermissionDenied};
    let remedy = match (address, error.kind()) {
        (ControlAddress::Tcp(address), ConnectionRefused) => {
            format!("is tor running, and is `ControlPort {address}` in its torrc?")
        }
        (ControlAddress::Tcp(_), _) => "is it the right address?".to_owned(),
        (ControlAddress::Unix(path), ConnectionRefused | NotFound) => {
            format!("is tor running, and is `ControlSocket {}` in its torrc?", path.display())
        }
        (ControlAddress::Unix(path), PermissionDenied) => access::remedy(path, access::SOCKET),
        (ControlAddress::Unix(_), _) => "is it the right path?".to_owned(),
    };
    ControlError::Unreachable { address: shown(address), error, remedy }
}

/// As the configuration has it.
fn shown(address: &ControlAddress) -> String {
    match address {
        ControlAddress::Tcp(address) => address.to_string(),
        ControlAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// A connection to a control port.
#[derive(Debug)]
pub enum Connection {
    /// To a ControlPort.
    Tcp(TcpStream),
    /// To a ControlSocket.
    Unix(UnixStream),
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Tcp(stream) => {
                let read = Pin::new(&mut *stream).poll_read(context, room);
                // tor's small writes wait for the acknowledgement of the one before (Nagle), which the system would
                // put off by 40 ms; then a circuit's hops would all seem to come at once. The system forgets this
                // setting now and then, so it is set anew each time that there is nothing more to read. It is no
                // fault where it can't be had.
                if read.is_pending() {
                    let _ = stream.set_quickack(true);
                }
                read
            }
            Connection::Unix(stream) => Pin::new(stream).poll_read(context, room),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Connection::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Connection::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Connection::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Connection::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Connection::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
