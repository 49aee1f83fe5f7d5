//! The load of `cargo xtask bench`, beside iperf3: connections, round trips and datagrams.
//!
//! `load serve ADDRESS` answers; `load connect|rtt|udp ADDRESS SECONDS [BYTES]` asks, and prints one JSON object.
//! `load hold sockets|processes NUMBER` only has them, until its input ends.

use std::{
    error::Error,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lockne_lab::hold::{Thing, until_end_of_input};
use serde_json::{Value, json};
use socket2::SockRef;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// Sends back each byte.
const ECHO: u16 = 7001;
/// Greets with one byte and hangs up.
const GREETER: u16 = 7002;
/// Counts datagrams, and says how many at [`QUESTION`].
const COUNTER: u16 = 7003;
const QUESTION: &[u8] = b"how many?";

fn main() -> Result {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let answer = match *words.as_slice() {
        ["serve", address] => return serve(address.parse()?),
        ["connect", address, time] => connect(address.parse()?, seconds(time)?)?,
        ["rtt", address, time] => rtt(address.parse()?, seconds(time)?)?,
        ["udp", address, time, size] => udp(address.parse()?, seconds(time)?, size.parse()?)?,
        ["hold", "sockets", count] => return Ok(until_end_of_input(Thing::Sockets, count.parse()?)?),
        ["hold", "processes", count] => return Ok(until_end_of_input(Thing::Processes, count.parse()?)?),
        _ => return Err("load serve|connect|rtt|udp ADDRESS [SECONDS [BYTES]], or load hold sockets|processes NUMBER".into()),
    };
    writeln!(std::io::stdout(), "{answer}")?;
    Ok(())
}

fn seconds(word: &str) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(word.parse()?)?)
}

fn serve(address: IpAddr) -> Result {
    let echo = TcpListener::bind((address, ECHO))?;
    let greeter = TcpListener::bind((address, GREETER))?;
    let counter = UdpSocket::bind((address, COUNTER))?;
    SockRef::from(&counter).set_recv_buffer_size(4 << 20)?;
    thread::spawn(move || {
        for stream in echo.incoming().flatten() {
            thread::spawn(move || send_back(stream));
        }
    });
    thread::spawn(move || {
        for mut stream in greeter.incoming().flatten() {
            // Who hangs up first is nothing to the server.
            let _ = stream.write_all(b"!");
        }
    });
    let mut buffer = vec![0; 65536];
    let (mut count, mut bytes) = (0_u64, 0_u64);
    loop {
        let (length, from) = counter.recv_from(&mut buffer)?;
        if &buffer[..length] == QUESTION {
            let answer = json!({ "count": count, "bytes": bytes }).to_string();
            let _ = counter.send_to(answer.as_bytes(), from);
        } else if length == 1 {
            (count, bytes) = (0, 0);
        } else {
            count += 1;
            bytes += length as u64;
        }
    }
}

fn send_back(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    let _ = stream.set_nodelay(true);
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Connections one after the other: the greeting is read, then the connection is reset, or the ports run out.
fn connect(address: IpAddr, time: Duration) -> Result<Value> {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < time {
        let mut stream = TcpStream::connect((address, GREETER))?;
        stream.read_exact(&mut [0])?;
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        count += 1;
    }
    Ok(json!({ "per_second": f64::from(count) / start.elapsed().as_secs_f64() }))
}

/// Round trips of one byte over one connection.
fn rtt(address: IpAddr, time: Duration) -> Result<Value> {
    let mut stream = TcpStream::connect((address, ECHO))?;
    stream.set_nodelay(true)?;
    let start = Instant::now();
    let mut trips = Vec::with_capacity(1 << 17);
    while start.elapsed() < time {
        let before = Instant::now();
        stream.write_all(b"?")?;
        stream.read_exact(&mut [0])?;
        trips.push(before.elapsed());
    }
    trips.sort_unstable();
    let at = |percent: usize| trips[(trips.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    Ok(json!({ "p50_us": at(50), "p99_us": at(99), "count": trips.len() }))
}

/// As many datagrams as one thread can send.
fn udp(address: IpAddr, time: Duration, size: usize) -> Result<Value> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(SocketAddr::new(address, COUNTER))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    socket.send(b"0")?;
    let data = vec![0; size];
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < time {
        for _ in 0..32 {
            match socket.send(&data) {
                Ok(_) => sent += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.raw_os_error() == Some(105) => {} // ENOBUFS: the queue is full.
                Err(error) => return Err(error.into()),
            }
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let mut answer = [0; 256];
    for _ in 0..20 {
        socket.send(QUESTION)?;
        if let Ok(length) = socket.recv(&mut answer) {
            let got: Value = serde_json::from_slice(&answer[..length])?;
            let per_second = |value: &Value| value.as_f64().unwrap_or(0.0) / elapsed;
            return Ok(json!({
                "sent_per_second": precise(sent) / elapsed,
                "per_second": per_second(&got["count"]),
                "mbit_per_second": per_second(&got["bytes"]) * 8.0 / 1e6,
            }));
        }
    }
    Err("nobody says how many datagrams arrived".into())
}

#[expect(clippy::cast_precision_loss, reason = "a count below 2^52")]
fn precise(count: u64) -> f64 {
    count as f64
}
