//! Random tensors into safetensors shards: headers first, then the data as it is made, so that nothing large is held.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::Instant;

use gaterail_kernels::{ElementType, FP8_BLOCK, MXFP4_GROUP};
use gaterail_model::config::{Int4Packing, Quantization};
use gaterail_model::spec::ModelSpec;
use gaterail_model::weights::{Form, Role, expected_tensors, stored_form};
use serde_json::{Map, Value, json};

use super::values::{Kind, Source};
use super::write_text;
use crate::error::CliError;
use crate::progress::{self, ByteMeter, Progress};

/// One tensor as it will be stored.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
    kind: Kind,
}

/// Writes all tensors; one file, or shards with their index.
pub fn weights(spec: &ModelSpec, out: &Path, shard_bytes: u64, seed: u64) -> Result<(), CliError> {
    let tensors: Vec<Stored> = expected_tensors(spec).iter().flat_map(|row| stored(spec, row)).collect();
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    let shards = cut(tensors, shard_bytes);
    let names: Vec<String> = match shards.len() {
        1 => vec!["model.safetensors".to_string()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    let meter = ByteMeter::default();
    meter.plan(total, shards.len() as u64);
    let mut shown = progress::on_stderr("synth");
    let mut source = Source::new(seed);
    let mut map = Map::new();
    for (shard, name) in shards.iter().zip(&names) {
        meter.begin(name);
        map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.as_str().into())));
        let written = write_shard(&out.join(name), shard, &mut source, &meter, shown.as_mut());
        if written.is_err() {
            // A part of a shard is of no use to anybody.
            let _ = std::fs::remove_file(out.join(name));
        }
        written?;
        meter.end();
    }
    shown.finish(&meter.now());
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        write_text(&out.join("model.safetensors.index.json"), &format!("{index:#}\n"))?;
    }
    Ok(())
}

/// In order, as many as fit a shard.
fn cut(tensors: Vec<Stored>, shard_bytes: u64) -> Vec<Vec<Stored>> {
    let mut shards: Vec<Vec<Stored>> = Vec::new();
    let mut room = 0;
    for tensor in tensors {
        match shards.last_mut() {
            Some(shard) if tensor.bytes <= room => {
                room -= tensor.bytes;
                shard.push(tensor);
            }
            _ => {
                room = shard_bytes.saturating_sub(tensor.bytes);
                shards.push(vec![tensor]);
            }
        }
    }
    shards
}

/// A tensor with its scales, in the form that the configuration declares.
fn stored(spec: &ModelSpec, row: &gaterail_model::weights::Expected) -> Vec<Stored> {
    let count = |shape: &[usize]| shape.iter().map(|&n| n as u64).product::<u64>();
    let make = |suffix: &str, dtype, shape: Vec<usize>, width: u64, kind| Stored {
        name: format!("{}{suffix}", row.name),
        dtype,
        bytes: count(&shape) * width,
        shape,
        kind,
    };
    match stored_form(spec.quantization, row.form) {
        Quantization::Fp8Blocks => {
            let blocks: Vec<usize> = row.shape.iter().map(|n| n.div_ceil(FP8_BLOCK)).collect();
            let scale = Kind::Constant((row.shape[1] as f32).powf(-0.5) / 128.0);
            vec![
                make("", "F8_E4M3", row.shape.clone(), 1, Kind::Fp8),
                make("_scale_inv", "F32", blocks, 4, scale),
            ]
        }
        Quantization::Mxfp4Experts => {
            let [experts, inputs, outputs] = [row.shape[0], row.shape[1], row.shape[2]];
            let exponent = 127 - ((inputs as f32).log2() / 2.0).round() as u8 - 1;
            vec![
                make("_blocks", "U8", vec![experts, outputs, inputs / MXFP4_GROUP, 16], 1, Kind::Bytes),
                make(
                    "_scales",
                    "U8",
                    vec![experts, outputs, inputs / MXFP4_GROUP],
                    1,
                    Kind::ConstantByte(exponent),
                ),
            ]
        }
        Quantization::Int4(int4) => {
            let [rows, cols] = [row.shape[0], row.shape[1]];
            let groups = cols.div_ceil(int4.stored_group(cols));
            let module = row.name.trim_end_matches("weight");
            let named = |leaf: &str, dtype, shape, width, kind| Stored {
                name: format!("{module}{leaf}"),
                ..make("", dtype, shape, width, kind)
            };
            let words = match int4.packing {
                Int4Packing::Gptq | Int4Packing::GptqV2 => vec![cols / 8, rows],
                Int4Packing::Awq => vec![cols, rows / 8],
            };
            // Zero points of 8.
            let zeros = if int4.packing == Int4Packing::Gptq { 0x77 } else { 0x88 };
            let scale =
                Kind::Values { element: ElementType::F16, mean: (cols as f32).powf(-0.5) / 4.0, scale: 0.0 };
            vec![
                named("qweight", "I32", words, 4, Kind::Bytes),
                named("qzeros", "I32", vec![groups, rows / 8], 4, Kind::ConstantByte(zeros)),
                named("scales", "F16", vec![groups, rows], 2, scale),
            ]
        }
        Quantization::None => {
            let element = match row.name.ends_with("e_score_correction_bias") {
                true => ElementType::F32,
                false => spec.declared.unwrap_or(ElementType::Bf16),
            };
            let (dtype, width) = match element {
                ElementType::F32 => ("F32", 4),
                ElementType::F16 => ("F16", 2),
                ElementType::Bf16 => ("BF16", 2),
            };
            let scale = match row.form {
                _ if row.role == Role::Embedding => 1.0,
                Form::Vector => 0.1,
                Form::Stack | Form::Matrix | Form::PlainMatrix => (row.shape[1] as f32).powf(-0.5),
                Form::OutputStack => (row.shape[2] as f32).powf(-0.5),
            };
            let mean = if row.role == Role::Norms { 1.0 } else { 0.0 };
            vec![make("", dtype, row.shape.clone(), width, Kind::Values { element, mean, scale })]
        }
    }
}

fn write_shard(
    path: &Path,
    tensors: &[Stored],
    source: &mut Source,
    meter: &ByteMeter,
    shown: &mut dyn Progress,
) -> Result<(), CliError> {
    let failed = || CliError::io(path.display().to_string());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).map_err(failed())?);
    let header = header(tensors);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed())?;
    file.write_all(header.as_bytes()).map_err(failed())?;
    let mut chunk = vec![0u8; 1 << 20];
    let mut last = Instant::now();
    for tensor in tensors {
        let mut left = tensor.bytes;
        while left > 0 {
            let part = &mut chunk[..left.min(1 << 20) as usize];
            source.fill(tensor.kind, part);
            file.write_all(part).map_err(failed())?;
            left -= part.len() as u64;
            meter.add(part.len() as u64);
            if last.elapsed().as_millis() >= 100 {
                last = Instant::now();
                shown.update(&meter.now());
            }
        }
    }
    file.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).map_err(failed())
}

/// The JSON header, padded with spaces to a multiple of eight bytes.
fn header(tensors: &[Stored]) -> String {
    let mut entries = Map::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes;
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]});
        entries.insert(tensor.name.clone(), entry);
        offset = end;
    }
    let mut text = Value::Object(entries).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    text
}
