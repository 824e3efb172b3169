//! An honest SOCKS 5 proxy on loopback: perfd can fetch from itself through it, without tor and fast.
//!
//! It takes a user name and password (any) or none, grants CONNECT to loopback addresses alone, and
//! copies the bytes both ways; towards the client as slowly as it is told, or not at all from some
//! byte on. Its threads end with the connections, the one that accepts with the test.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How bytes are copied towards the client.
#[derive(Clone, Copy, Debug)]
pub enum Pace {
    /// As they come.
    AtOnce,
    /// With a pause after each piece of 16 KiB at most.
    Pausing(Duration),
    /// So many bytes, and then none though the connection stays open.
    StallingAfter(usize),
}

/// What a relay tells of a client, by its SOCKS user name.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// It has asked for a connection, which is not granted yet.
    Asked { user: &'a str, client: SocketAddr },
    /// Its connection is over.
    Over { user: &'a str },
}

/// A running relay.
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
}

const PIECE: usize = 16 * 1024;

impl Relay {
    pub fn start(pace: Pace) -> Relay {
        Self::start_told(pace, |_| {})
    }

    /// One that tells of its clients.
    pub fn start_told(pace: Pace, tell: impl Fn(Told) + Clone + Send + 'static) -> Relay {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let tell = tell.clone();
                std::thread::spawn(move || serve(client, pace, tell));
            }
        });
        Relay { address }
    }
}

/// One client, from its greeting to the end of its connection.
fn serve(mut client: TcpStream, pace: Pace, tell: impl Fn(Told)) -> io::Result<()> {
    client.set_nodelay(true)?;
    let user = negotiate(&mut client)?;
    tell(Told::Asked { user: &user, client: client.peer_addr()? });
    let served = carry(&mut client, pace);
    tell(Told::Over { user: &user });
    served
}

/// From the request to the end of the connection.
fn carry(client: &mut TcpStream, pace: Pace) -> io::Result<()> {
    let mut target = match connect(client) {
        Ok(target) => target,
        Err(code) => return client.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]),
    };
    target.set_nodelay(true)?;
    client.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])?;

    let (mut from_client, mut to_target) = (client.try_clone()?, target.try_clone()?);
    let upstream = std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_target);
        let _ = to_target.shutdown(Shutdown::Both);
    });
    let _ = copy_down(&mut target, client, pace);
    let _ = client.shutdown(Shutdown::Write);
    let _ = upstream.join();
    Ok(())
}

const NO_PASSWORD: u8 = 0;
const PASSWORD: u8 = 2;

/// The choice of a method, and the log-in if there is one; the user name.
fn negotiate(client: &mut TcpStream) -> io::Result<String> {
    let [version, count] = read(client)?;
    let mut methods = vec![0; usize::from(count)];
    client.read_exact(&mut methods)?;
    if version != 5 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if methods.contains(&PASSWORD) {
        client.write_all(&[5, PASSWORD])?;
        let [_, user] = read(client)?;
        let mut name = vec![0; usize::from(user)];
        client.read_exact(&mut name)?;
        let [password] = read(client)?;
        client.read_exact(&mut vec![0; usize::from(password)])?;
        client.write_all(&[1, 0])?;
        Ok(String::from_utf8_lossy(&name).into_owned())
    } else if methods.contains(&NO_PASSWORD) {
        client.write_all(&[5, NO_PASSWORD])?;
        Ok(String::new())
    } else {
        client.write_all(&[5, 255])?;
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Reads the request and connects as it says; or the reply's code.
fn connect(client: &mut TcpStream) -> Result<TcpStream, u8> {
    const GENERAL_FAILURE: u8 = 1;
    const NOT_ALLOWED: u8 = 2;
    const REFUSED: u8 = 5;
    const NO_SUCH_COMMAND: u8 = 7;
    let target = |client: &mut TcpStream| {
        let [_, command, _, kind] = read(client)?;
        let host = match kind {
            1 => IpAddr::from(Ipv4Addr::from(read::<4>(client)?)).to_string(),
            4 => IpAddr::from(Ipv6Addr::from(read::<16>(client)?)).to_string(),
            _ => {
                let [length] = read(client)?;
                let mut name = vec![0; usize::from(length)];
                client.read_exact(&mut name)?;
                String::from_utf8_lossy(&name).into_owned()
            }
        };
        io::Result::Ok((command, host, u16::from_be_bytes(read(client)?)))
    };
    let (command, host, port) = target(client).map_err(|_| GENERAL_FAILURE)?;
    if command != 1 {
        return Err(NO_SUCH_COMMAND);
    }
    let address = (host.as_str(), port).to_socket_addrs().map_err(|_| GENERAL_FAILURE)?.next();
    let address = address.filter(|address| address.ip().is_loopback()).ok_or(NOT_ALLOWED)?;
    TcpStream::connect(address).map_err(|_| REFUSED)
}

fn copy_down(target: &mut TcpStream, client: &mut TcpStream, pace: Pace) -> io::Result<()> {
    let mut left = match pace {
        Pace::StallingAfter(bytes) => bytes,
        _ => usize::MAX,
    };
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let count = target.read(&mut piece[..PIECE.min(left)])?;
        if count == 0 {
            return Ok(());
        }
        client.write_all(&piece[..count])?;
        left -= count;
        if let Pace::Pausing(pause) = pace {
            std::thread::sleep(pause);
        }
    }
    // Stalled: until the client has gone. Another thread reads what it sends, which is nothing more.
    while client.peek(&mut [0])? > 0 {
        std::thread::yield_now();
    }
    Ok(())
}

fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
