//! The proof that the network works: bytes fetched through a client's SOCKS port.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_socks::tcp::Socks5Stream;

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Between an attempt that failed and the next.
const PAUSE: Duration = Duration::from_millis(200);
const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nperfd";

/// Returns once an HTTP responder behind `listener` has been read through the SOCKS port at `socks`.
/// Tries without end, so the caller sets the deadline.
pub async fn until_fetched(listener: &TcpListener, socks: SocketAddr) -> io::Result<()> {
    let target = listener.local_addr()?;
    let attempts = async {
        loop {
            if let Ok(Ok(true)) = tokio::time::timeout(ATTEMPT, fetch(socks, target)).await {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = attempts => Ok(()),
        error = respond(listener) => Err(error),
    }
}

async fn fetch(socks: SocketAddr, target: SocketAddr) -> io::Result<bool> {
    let mut stream = Socks5Stream::connect(socks, target).await.map_err(io::Error::other)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(1024).read_to_end(&mut answer).await?;
    Ok(answer == ANSWER)
}

// One at a time: the only client is `fetch`, and an attempt that it gave up on frees the next one.
async fn respond(listener: &TcpListener) -> io::Error {
    loop {
        let (mut stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => return error,
        };
        let exchange = async {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && request.len() < 1024 {
                request.push(stream.read_u8().await?);
            }
            stream.write_all(ANSWER).await?;
            stream.shutdown().await
        };
        // A failed exchange is seen by the one who fetches.
        let _ = tokio::time::timeout(ATTEMPT, exchange).await;
    }
}
