//! One suite over all channels: what arrives does not depend on how it travels.
//!
//! | file | |
//! |---|---|
//! | [`suite`] | what every channel must do, with both ends in one process |
//! | [`frames`] | frames made from numbers, and what an answerer makes of them |
//! | [`grpc`] | a server and a client on loopback |
//! | [`processes`] | the far end in another process, which may be killed |
//! | [`hostile`] | bytes that no honest end would send |

#[path = "../../../tests/src/ends.rs"]
mod exchange_ends;
mod frames;
mod grpc;
mod hostile;
mod processes;
mod suite;

use gaterail_cluster::exchange::{Channel, Waiting, create_shared, local_pair, open_shared};

/// Two ends in this process.
pub type Ends = (Box<dyn Channel>, Box<dyn Channel>);

fn local(body_max: u64) -> Ends {
    let (a, b) = local_pair(body_max);
    (Box::new(a), Box::new(b))
}

fn shared(body_max: u64) -> Ends {
    shared_waiting(body_max, Waiting::default())
}

fn shared_asleep(body_max: u64) -> Ends {
    shared_waiting(body_max, Waiting::asleep())
}

fn shared_waiting(body_max: u64, waiting: Waiting) -> Ends {
    let (offer, router) = create_shared(body_max, 77, waiting).expect("memory");
    let worker = open_shared(&offer, body_max, waiting).expect("the same memory");
    (Box::new(router), Box::new(worker))
}

fn streams(body_max: u64) -> Ends {
    grpc::ends(body_max)
}

suite::over!(local, shared, shared_asleep, streams);
