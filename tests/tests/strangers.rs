//! Strangers at the port of the cluster: whoever says little, or nothing that is understood, keeps nobody out for long.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use gaterail_cluster::exchange::{ChannelError, FrameBody};
use gaterail_router::http::ListenLimits;
use gaterail_tests::certs::Ca;
use gaterail_tests::exchanges::GrpcExchange;

const HEADER_TIME_MAX: Duration = Duration::from_millis(500);
/// Other programs use these cores, too.
const PATIENCE: Duration = Duration::from_secs(60);
/// HTTP/2's preface, and settings of which none is named.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

fn limits() -> ListenLimits {
    ListenLimits { connections_max: 2, ..ListenLimits::default() }
}

/// Answers pings and settings until the connection ends; whether it did in time.
fn is_ended(socket: &mut TcpStream) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("an option");
    let (until, mut bytes) = (Instant::now() + PATIENCE, [0; 4096]);
    while Instant::now() < until {
        match socket.read(&mut bytes) {
            Ok(0) => return true,
            Ok(count) => answer_pings(socket, &bytes[..count]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {}
            Err(_) => return true,
        }
    }
    false
}

/// Whole frames come here: they are small.
fn answer_pings(socket: &mut TcpStream, mut frames: &[u8]) {
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = frames {
        let bytes = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, next)) = rest.split_at_checked(bytes) else { return };
        if (*kind, flags & 1) == (6, 0) {
            let pong = [&[0, 0, 8, 6, 1, 0, 0, 0, 0], payload].concat();
            // Who has hung up wants none.
            let _ = socket.write_all(&pong);
        }
        frames = next;
    }
}

/// Two connections that say this much and no more.
fn two_strangers(exchange: &GrpcExchange, says: &[u8]) -> Vec<TcpStream> {
    let stranger = |_| {
        let mut socket = TcpStream::connect(exchange.address).expect("a connection");
        socket.write_all(says).expect("sent");
        socket
    };
    (0..2).map(stranger).collect()
}

#[test]
fn connections_without_a_request_end() {
    for tls in [false, true] {
        for says in [&b"P"[..], PREFACE, &[22, 3, 1, 2]] {
            let limits = ListenLimits { header_time_max: HEADER_TIME_MAX, ..limits() };
            let exchange = GrpcExchange::start(tls.then(|| Ca::new("strangers")), limits);
            let case = format!("tls: {tls}, {}", says.escape_ascii());
            for stranger in &mut two_strangers(&exchange, says) {
                assert!(is_ended(stranger), "{case}: kept for ever");
            }
            // Room again, and who has a call open keeps it. A handshake that was held up for as long as that is given up like
            // any other, and comes again.
            let until = Instant::now() + PATIENCE;
            let (router, mut worker) = loop {
                match exchange.try_pair(1 << 10) {
                    Ok(pair) => break pair,
                    Err(why) => assert!(Instant::now() < until, "{case}: {why}"),
                }
            };
            let received = worker.receive(&mut FrameBody::default(), Instant::now() + 4 * HEADER_TIME_MAX);
            assert!(matches!(received, Err(ChannelError::Deadline)), "{case}: {received:?}");
            drop(router);
        }
    }
}

/// What the two say is the beginning of something: nobody hangs up on them before their time.
#[test]
fn a_connection_too_many_is_turned_away() {
    for (tls, says) in [(false, &b"P"[..]), (false, PREFACE), (true, &[22, 3, 1, 2])] {
        let limits = ListenLimits { header_time_max: 4 * PATIENCE, ..limits() };
        let exchange = GrpcExchange::start(tls.then(|| Ca::new("strangers")), limits);
        let strangers = two_strangers(&exchange, says);
        let case = format!("tls: {tls}, {}", says.escape_ascii());
        let mut third = TcpStream::connect(exchange.address).expect("a connection");
        assert!(is_ended(&mut third), "{case}: there is no room");
        let turned_away = "a worker at 127.0.0.1 is turned away: 2 connections are open";
        let told = exchange.notes.lock().expect("notes").iter().any(|note| note.starts_with(turned_away));
        assert!(told, "{case}: {:?}", exchange.notes);
        drop(strangers);
    }
}
