//! A proxy between the gateway and a real server, which breaks what passes on demand.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It is passed on.
    None,
    /// The connection is closed without an answer.
    Cut,
    /// Nothing comes until the fault is over.
    Hang,
    /// This status, and nothing is asked.
    Status(u16),
    /// Listings are well-formed and name nothing, and single objects are not there.
    Empty,
    /// A byte in the middle of each blob is another.
    Corrupt,
    /// The answer ends after half of each blob.
    Truncate,
    /// Each blob is another one of the same length, whole and well-formed.
    Wrong,
    /// The answer comes a few bytes at a time.
    Trickle,
}

/// The proxy. It ends with the program.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    upstream: SocketAddr,
    fault: Mutex<(Fault, u64)>,
    changed: Condvar,
}

impl Proxy {
    /// In front of this server.
    pub fn before(upstream: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State { upstream, fault: Mutex::new((Fault::None, 0)), changed: Condvar::new() });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A connection that breaks is what this is for.
                std::thread::spawn(move || drop(state.serve(client)));
            }
        });
        Proxy { address, state }
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        *self.state.fault.lock().expect("the fault") = (fault, 0);
        self.state.changed.notify_all();
    }

    /// Waits until so many requests have met the fault.
    pub fn wait_for(&self, requests: u64) {
        let fault = self.state.fault.lock().expect("the fault");
        let limit = crate::sandbox::PATIENCE;
        let (fault, late) = self.state.changed.wait_timeout_while(fault, limit, |(_, met)| *met < requests).expect("the fault");
        assert!(!late.timed_out(), "{:?} was met {} times only", fault.0, fault.1);
    }
}

impl State {
    fn meet(&self) -> Fault {
        let mut fault = self.fault.lock().expect("the fault");
        fault.1 += 1;
        self.changed.notify_all();
        fault.0
    }

    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let head = read_head(&mut client)?;
        let line = head.lines().next().unwrap_or_default().to_owned();
        let fault = self.meet();
        let of_blob = line.contains("/blobs/") && line.starts_with("GET");
        match fault {
            Fault::Cut => return client.shutdown(Shutdown::Both),
            Fault::Hang => {
                let fault = self.fault.lock().expect("the fault");
                drop(self.changed.wait_while(fault, |(fault, _)| *fault == Fault::Hang).expect("the fault"));
                return client.shutdown(Shutdown::Both);
            }
            Fault::Status(status) => {
                let body = "<Error><Code>Injected</Code></Error>";
                return answer(&mut client, &format!("{status} Injected"), "application/xml", body);
            }
            Fault::Empty if line.contains("list-type=2") => {
                let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
                return answer(&mut client, "200 OK", "application/xml", body);
            }
            Fault::Empty => {
                let body = "<Error><Code>NoSuchKey</Code></Error>";
                return answer(&mut client, "404 Not Found", "application/xml", body);
            }
            _ => {}
        }
        let mut server = TcpStream::connect(self.upstream)?;
        server.write_all(with_close(&head).as_bytes())?;
        std::io::copy(&mut Read::by_ref(&mut client).take(body_bytes(&head)), &mut server)?;
        match fault {
            Fault::Corrupt | Fault::Truncate | Fault::Wrong if of_blob => {
                let mut whole = Vec::new();
                server.read_to_end(&mut whole)?;
                let body = whole.windows(4).position(|window| window == b"\r\n\r\n").map_or(whole.len(), |at| at + 4);
                let middle = body + (whole.len() - body) / 2;
                match fault {
                    Fault::Corrupt => whole[middle] ^= 0x40,
                    Fault::Wrong => whole[body..].reverse(),
                    _ => whole.truncate(middle),
                }
                client.write_all(&whole)?;
            }
            Fault::Trickle => {
                let mut piece = [0; 64];
                loop {
                    match server.read(&mut piece)? {
                        0 => break,
                        length => client.write_all(&piece[..length])?,
                    }
                    client.flush()?;
                }
            }
            _ => drop(std::io::copy(&mut server, &mut client)?),
        }
        client.shutdown(Shutdown::Both)
    }
}

/// The head of a request; its body stays to be read.
fn read_head(client: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

fn body_bytes(head: &str) -> u64 {
    let named = head.lines().filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    named.and_then(|(_, bytes)| bytes.trim().parse().ok()).unwrap_or(0)
}

/// One request a connection, so that an answer ends with it.
fn with_close(head: &str) -> String {
    let lines = head.trim_end().lines().filter(|line| !line.to_ascii_lowercase().starts_with("connection:"));
    let mut text = lines.collect::<Vec<_>>().join("\r\n");
    text.push_str("\r\nconnection: close\r\n\r\n");
    text
}

fn answer(client: &mut TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    write!(client, "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")?;
    client.shutdown(Shutdown::Both)
}
