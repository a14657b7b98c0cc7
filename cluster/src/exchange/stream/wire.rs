//! How connections that carry frames are set up; for both sides, so that they agree.
//!
//! A server sets the same: `TCP_NODELAY` on what it accepts, keep-alive, windows, and the two limits of messages.

use std::time::Duration;

use tonic::transport::{Endpoint, Error};

/// The metadata in which a worker says whose exchange this is.
pub const SESSION: &str = "gaterail-session";
/// The largest piece of a frame.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The largest message: a piece, and what protobuf says of it. For `max_decoding_message_size` and `max_encoding_message_size`.
pub const MESSAGE_BYTES_MAX: usize = PIECE_BYTES_MAX + 64;
/// What may be on its way without an answer, of a stream and of a connection: a step's rows should never wait for a window.
pub const WINDOW_BYTES: u32 = 16 << 20;
/// A connection is asked this often whether it lives, and is given up if it says nothing for so long.
pub const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(2);
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(4);
/// How long connecting may take.
pub const CONNECT_MAX: Duration = Duration::from_secs(5);

/// The client's side of a connection for frames; `uri` is `http://HOST:PORT`.
pub fn endpoint(uri: String) -> Result<Endpoint, Error> {
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_MAX)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(KEEP_ALIVE_EVERY))
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES))
}
