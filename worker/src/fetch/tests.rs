//! Streams that bring what was asked for, however they are cut, and streams that bring something else.

use std::sync::mpsc::{RecvTimeoutError, channel};

use gaterail_kernels::ops::{Packing, pack};
use gaterail_kernels::wire::write_piece;
use gaterail_kernels::{CpuOptions, Matrix, Weight};
use gaterail_proto::grpc::v1::cluster_client::ClusterClient;
use gaterail_proto::{ExpertId, UnitRange};
use tonic::transport::Endpoint;

use super::*;
use crate::link::Token;
use crate::served::tests::message;

const MEMORY: u64 = 1 << 20;

fn slices() -> Vec<ExpertSlice> {
    let slice = |expert, start, end| ExpertSlice {
        layer: LayerId(1),
        expert: ExpertId(expert),
        units: UnitRange { start, end },
    };
    vec![slice(0, 0, 1), slice(5, 1, 3), slice(7, 2, 3)]
}

fn device() -> Device {
    Device::cpu(CpuOptions { threads: 1, ..CpuOptions::default() }).expect("a CPU")
}

#[derive(Clone, Copy)]
enum Form {
    F32,
    Bf16,
    Int8,
}

/// Length and piece, as a router sends them.
fn sent(served: &ServedModel, slice: &ExpertSlice, form: Form) -> Vec<u8> {
    let shape = served.shape(slice);
    let matrix = |rows, cols| -> Weight {
        let matrix = Matrix::from_f32(&vec![0.5; rows * cols], rows, cols);
        match form {
            Form::F32 => matrix.into(),
            Form::Bf16 => matrix.to_bf16().into(),
            Form::Int8 => pack(&device(), &matrix, Packing::Int8, &mut Arena::default()).into(),
        }
    };
    let piece = ExpertPiece {
        expert: shape.expert,
        gate: matrix(shape.run, shape.hidden),
        up: matrix(shape.run, shape.hidden),
        down: matrix(shape.hidden, shape.run),
        gate_bias: None,
        up_bias: None,
        down_bias: None,
    };
    let mut bytes = vec![0; 8];
    write_piece(&piece, &mut |run| bytes.extend_from_slice(run));
    let length = bytes.len() as u64 - 8;
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// What comes of a stream that is cut into messages of `cut` bytes; `most` pieces are wanted.
fn take(bytes: &[u8], cut: usize, most: usize) -> Result<Vec<(ExpertSlice, usize)>, String> {
    let served = ServedModel::new(message()).expect("a model");
    let slices = slices();
    let device = device();
    let mut arena = Arena::default();
    let mut got = Vec::new();
    let mut each = |slice, piece: ExpertPiece| {
        got.push((slice, piece.gate.rows()));
        (got.len() < most).then_some(piece)
    };
    let mut pieces = Pieces::new(&served, (&slices, MEMORY), &device, &mut arena, &mut each);
    for message in bytes.chunks(cut) {
        if !pieces.take(message)? {
            return Ok(got);
        }
    }
    pieces.finish()?;
    Ok(got)
}

#[test]
fn pieces_come_however_they_are_cut() {
    let served = ServedModel::new(message()).expect("a model");
    let all: Vec<u8> = slices().iter().flat_map(|slice| sent(&served, slice, Form::F32)).collect();
    // The last unit of 300 is short.
    let expected: Vec<_> = slices().into_iter().zip([128, 172, 44]).collect();
    for cut in [1, 7, 8, 9, 1000, 70_000, all.len()] {
        assert_eq!(take(&all, cut, usize::MAX), Ok(expected.clone()), "cut at {cut}");
    }
    assert_eq!(take(&all, 100, 2).map(|got| got.len()), Ok(2), "no more than is wanted");
}

#[test]
fn other_streams_are_refused() {
    let served = ServedModel::new(message()).expect("a model");
    let [one, two, three] = [0, 1, 2].map(|at| sent(&served, &slices()[at], Form::F32));
    let refused = |bytes: Vec<u8>| take(&bytes, 1000, usize::MAX).expect_err("a wrong stream");
    assert!(refused(vec![]).contains("3 slices too few"));
    assert!(refused([&one[..], &two[..]].concat()).contains("1 slices too few"));
    assert!(refused([&two[..], &one[..], &three[..]].concat()).contains("expert 0 of layer 1"));
    assert!(refused([&one[..], &two[..], &three[..], &[0][..]].concat()).contains("more than was asked for"));
    assert!(refused(0u64.to_le_bytes().to_vec()).contains("a piece of 0 bytes"));
    assert!(refused(u64::MAX.to_le_bytes().to_vec()).contains("at most"));
    // Within the shape's bound, but beyond this worker's memory.
    assert!(refused((MEMORY + 1).to_le_bytes().to_vec()).contains("at most"));
    let mut long = one.clone();
    long[..8].copy_from_slice(&(one.len() as u64 - 7).to_le_bytes());
    assert!(refused([&long[..], &two[..]].concat()).contains("1 bytes more"));
}

#[test]
fn pieces_of_a_layer_go_together() {
    let served = ServedModel::new(message()).expect("a model");
    let with = |form: &dyn Fn(usize) -> Form| -> Vec<u8> {
        slices().iter().enumerate().flat_map(|(at, slice)| sent(&served, slice, form(at))).collect()
    };
    let bf16 = with(&|at| if at == 1 { Form::Bf16 } else { Form::F32 });
    assert_eq!(take(&bf16, 1000, usize::MAX).map(|got| got.len()), Ok(3), "plain ones of any type do");
    let packed = with(&|at| if at == 1 { Form::Int8 } else { Form::F32 });
    let refused = take(&packed, 1000, usize::MAX).expect_err("packed ones with plain ones");
    assert!(refused.contains("does not go with the others"), "{refused}");
}

/// A newer plan does not wait for a router that sends nothing of what the last one wanted.
#[test]
fn what_nobody_wants_any_more_is_not_waited_for() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("a runtime");
    // It takes connections, and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = silent.local_addr().expect("its number");
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    let _inside = runtime.enter();
    let client = ClusterClient::with_interceptor(endpoint.connect_lazy(), Token(None));
    let cancelled = Arc::new(AtomicBool::new(false));
    let (runtime, session) = (runtime.handle().clone(), "a-session".to_string());
    let router = FromRouter { runtime, client, session, cancelled: cancelled.clone() };
    let (ended, end) = channel();
    std::thread::spawn(move || {
        let served = ServedModel::new(message()).expect("a model");
        let (slices, device, mut arena) = (slices(), device(), Arena::default());
        let mut none = |_, _| panic!("nothing was sent");
        let mut pieces = Pieces::new(&served, (&slices, MEMORY), &device, &mut arena, &mut none);
        let shard = ShardSpec { slices: slices.clone() };
        let outcome = router.runtime.block_on(router.fetch(&shard, &mut pieces));
        ended.send(outcome).expect("somebody waits");
    });
    assert_eq!(end.recv_timeout(Duration::from_millis(300)), Err(RecvTimeoutError::Timeout), "it waits");
    cancelled.store(true, Ordering::Relaxed);
    assert_eq!(end.recv_timeout(Duration::from_secs(120)), Ok(Ok(())));
}
