//! Clients that send at a fixed rate whatever the answers: what waits behind a slow answer counts from when it was due.
//!
//! One thread looks at all connections again and again and never sleeps: timers are a millisecond sharp, and tools that use them send in
//! bursts that a server then answers one after the other. Requests are spread evenly over the connections and over time.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::calls::HttpCall;
use crate::cores::hold_this_thread;

/// One answered request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// When it was due.
    pub(crate) due: Instant,
    pub(crate) took: Duration,
    pub(crate) status: u16,
}

/// Clients under way, on a thread of their own.
pub(crate) struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Sample>>>,
}

impl Clients {
    /// Starts to send, so many requests a second in all.
    pub(crate) fn start(core: usize, address: SocketAddr, call: &HttpCall, connections: usize, rate: f64) -> Result<Clients> {
        let stop: Arc<AtomicBool> = Arc::default();
        let (request, stopped) = (written(call), Arc::clone(&stop));
        let work = move || {
            hold_this_thread(core)?;
            send_all(address, &request, connections, rate, &stopped)
        };
        let thread = std::thread::Builder::new().name("clients".to_owned()).spawn(work)?;
        Ok(Clients { stop, thread })
    }

    /// Sends for a while.
    pub(crate) fn run(
        core: usize,
        address: SocketAddr,
        call: &HttpCall,
        connections: usize,
        rate: f64,
        length: Duration,
    ) -> Result<Vec<Sample>> {
        let clients = Clients::start(core, address, call, connections, rate)?;
        std::thread::sleep(length);
        clients.end()
    }

    /// Ends them; what was answered, in no order.
    ///
    /// # Errors
    /// A connection that failed.
    pub(crate) fn end(self) -> Result<Vec<Sample>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a client panicked"))?
    }
}

/// The bytes of a request.
fn written(call: &HttpCall) -> Vec<u8> {
    let headers: String = call.headers().iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n{headers}\r\n", call.path, call.body.len());
    [head.as_bytes(), &call.body].concat()
}

fn send_all(address: SocketAddr, request: &[u8], connections: usize, rate: f64, stop: &AtomicBool) -> Result<Vec<Sample>> {
    let between = Duration::from_secs_f64(1.0 / rate);
    let turns = u32::try_from(connections)?;
    let started = Instant::now();
    let mut clients = (0..turns).map(|turn| Client::connect(address, started + between * turn)).collect::<Result<Vec<_>>>()?;
    let mut samples = Vec::new();
    loop {
        let stops = stop.load(Ordering::Relaxed);
        // What is under way at the end counts as well: it may be the slowest.
        if stops && clients.iter().all(|client| client.from.is_none()) {
            return Ok(samples);
        }
        for client in clients.iter_mut().filter(|client| !stops || client.from.is_some()) {
            if let Some(sample) = client.turn(request)? {
                samples.push(sample);
                client.due += between * turns;
            }
        }
        std::hint::spin_loop();
    }
}

/// One connection.
struct Client {
    stream: TcpStream,
    /// When the next request is to be sent, or this one was.
    due: Instant,
    /// From when the request under way counts.
    from: Option<Instant>,
    answer: Vec<u8>,
    answered: Instant,
}

impl Client {
    fn connect(address: SocketAddr, due: Instant) -> Result<Client> {
        let stream = TcpStream::connect(address).context("can't connect")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Client { stream, due, from: None, answer: Vec::new(), answered: due })
    }

    /// Sends where it is time to, and reads what is there; gives an answer that is whole.
    fn turn(&mut self, request: &[u8]) -> Result<Option<Sample>> {
        let Some(from) = self.from else {
            let now = Instant::now();
            if now >= self.due {
                // Where the last answer came too late, the time that it took from this request counts.
                self.from = Some(if self.answered > self.due { self.due } else { now });
                let sent = self.stream.write(request)?;
                ensure!(sent == request.len(), "a request is too large to be sent at once");
            }
            return Ok(None);
        };
        let mut piece = [0; 16 << 10];
        match self.stream.read(&mut piece) {
            Ok(0) => anyhow::bail!("the server closed a connection"),
            Ok(count) => self.answer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("a connection failed"),
        }
        let Some(status) = whole_answer(&self.answer)? else { return Ok(None) };
        (self.answered, self.from) = (Instant::now(), None);
        self.answer.clear();
        Ok(Some(Sample { due: from, took: self.answered - from, status }))
    }
}

/// The status of an answer that is all there.
fn whole_answer(answer: &[u8]) -> Result<Option<u16>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = str::from_utf8(&answer[..end])?;
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
    let length = length.with_context(|| format!("no length in '{head}'"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(|| format!("no status in '{head}'"))?;
    Ok((answer.len() >= end + 4 + length).then_some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let answer = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\nx: y\r\n\r\n{}";
        for length in 0..answer.len() {
            assert_eq!(whole_answer(&answer[..length]).unwrap(), None, "{length}");
        }
        assert_eq!(whole_answer(answer).unwrap(), Some(429));
        assert!(whole_answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
