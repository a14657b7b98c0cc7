//! A fixture whose experts are so wide that they can be cut: six canonical units, the last one shorter.

use serde_json::{Value, json};

use crate::broken::Copy;
use crate::cuts::hash;

const NARROW: u64 = 48;
/// Five units of 128, and one of 64.
const WIDE: u64 = 704;

/// A Mixtral with random experts.
pub fn wide() -> Copy {
    let copy = Copy::of("mixtral_a");
    copy.json("config.json", |config| _ = config.insert("intermediate_size".to_string(), json!(WIDE)));
    copy.tensors("model.safetensors", |header, data| {
        let old = std::mem::take(data);
        for (name, about) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
            let offset = |at: usize| about["data_offsets"][at].as_u64().expect("an offset") as usize;
            let (start, end) = (offset(0), offset(1));
            let begin = data.len();
            if name.contains(".experts.") {
                let shape = about["shape"].as_array_mut().expect("a shape");
                shape.iter_mut().filter(|side| **side == NARROW).for_each(|side| *side = json!(WIDE));
                let values = shape.iter().filter_map(Value::as_u64).product::<u64>();
                let name = name.bytes().fold(7, |seed, byte| hash(seed ^ u64::from(byte)));
                // Between -1/8 and 1/8.
                let random = |i: u64| ((hash(name ^ i) >> 40) as f32 / (1 << 24) as f32 - 0.5) / 4.0;
                data.extend((0..values).flat_map(|i| random(i).to_le_bytes()));
            } else {
                data.extend_from_slice(&old[start..end]);
            }
            about["data_offsets"] = json!([begin, data.len()]);
        }
    });
    copy
}
