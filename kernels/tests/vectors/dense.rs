//! ARITHMETIC.md, 2. to 5.: dot products, functions, attention, gate.

use gaterail_kernels::ops::{self, *};
use gaterail_kernels::{Matrix, Stream, View, ViewMut, Weight, exp, reference, sigmoid};

use crate::common::{all_streams, get, put, same};
use crate::read::{Case, cases};

#[test]
fn dot_products() {
    let streams = all_streams();
    for case in cases("dot") {
        let what = case.name();
        if case.has("dot") {
            let (a, b) = (case.floats("a"), case.floats("b"));
            same(what, &[reference::dot(&a, &b)], &case.floats("dot"));
            same(what, &[reference::sum(&a, 0)], &case.floats("sum"));
            if !a.is_empty() {
                streams.iter().for_each(|stream| projection(stream, what, &a, &b, None, &case.floats("dot")));
            }
            continue;
        }
        let (x, w, bias, k) =
            (case.floats("x"), case.floats("w"), case.floats_or_none("bias"), case.size("k"));
        let rows = x.chunks_exact(k).flat_map(|x| reference::linear_row(x, &w, bias.as_deref()));
        same(what, &rows.collect::<Vec<_>>(), &case.floats("out"));
        for stream in &streams {
            let rows = x.len() / k;
            let weight = Matrix::from_f32(&w, w.len() / k, k);
            let out = project_rows(stream, &weight.into(), rows, &x, bias.as_deref());
            same(&format!("{what}, {}", stream.device()), &out, &case.floats("out"));
        }
    }
}

fn projection(stream: &Stream, what: &str, x: &[f32], w: &[f32], bias: Option<&[f32]>, expected: &[f32]) {
    let weight = Matrix::from_f32(w, w.len() / x.len(), x.len());
    let out = project_rows(stream, &weight.into(), 1, x, bias);
    same(&format!("{what}, {}", stream.device()), &out, expected);
}

/// `rows` rows of x through a weight of any form.
pub fn project_rows(
    stream: &Stream,
    weight: &Weight,
    rows: usize,
    x: &[f32],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let weight = weight.clone().on(stream.device()).expect("memory");
    let (cols, n) = (x.len() / rows, weight.rows());
    let (x, bias) = (put(stream, x), bias.map(|bias| put(stream, bias)));
    let mut quantized = QuantRows::new(stream.device(), rows, cols).expect("memory");
    let mut out = put(stream, &vec![0.0; rows * n]);
    let projection = Projection { w: &weight, bias: bias.as_ref(), out: ViewMut::rows(&mut out, rows, n) };
    ops::project(stream, View::rows(&x, rows, cols), &mut quantized, &mut [projection]);
    get(stream, &out)
}

#[test]
fn functions() {
    let streams = all_streams();
    for case in cases("functions") {
        let what = case.name();
        match what.split([' ', ',']).next() {
            Some("exp") => {
                let y: Vec<f32> = case.floats("x").into_iter().map(exp).collect();
                same(what, &y, &case.floats("y"));
            }
            Some("sigmoid") => sigmoids(&streams, &case),
            Some("gated") => gated(&streams, &case),
            Some("swiglu") => activations(&streams, &case, Activation::SwiGlu),
            Some("clamped") => {
                let (alpha, limit) = (case.float("alpha"), case.float("limit"));
                activations(&streams, &case, Activation::ClampedSwiGlu { alpha, limit });
            }
            Some("norm") => norms(&streams, &case),
            Some("rotary") => rotations(&streams, &case),
            _ => panic!("no function of the name {what}"),
        }
    }
}

/// The fast one stands where a gated row is added: to 0, a row of 1.
fn sigmoids(streams: &[Stream], case: &Case) {
    let (x, y) = (case.floats("x"), case.floats("y"));
    same(case.name(), &x.iter().map(|&x| sigmoid(x)).collect::<Vec<_>>(), &y);
    for stream in streams {
        let (logits, ones) = (put(stream, &x), put(stream, &vec![1.0; x.len()]));
        let mut to = put(stream, &vec![0.0; x.len()]);
        add_gated(stream, ViewMut::rows(&mut to, x.len(), 1), View::rows(&ones, x.len(), 1), &logits);
        same(&format!("sigmoid, {}", stream.device()), &get(stream, &to), &y);
    }
}

/// A row of width 1 each; the plain reference has none.
fn gated(streams: &[Stream], case: &Case) {
    for stream in streams {
        let [to, from, logits] = ["to", "from", "logits"].map(|name| put(stream, &case.floats(name)));
        let (mut to, n) = (to, logits.len());
        add_gated(stream, ViewMut::rows(&mut to, n, 1), View::rows(&from, n, 1), &logits);
        same(&format!("gated, {}", stream.device()), &get(stream, &to), &case.floats("y"));
    }
}

fn activations(streams: &[Stream], case: &Case, kind: Activation) {
    let (gate, up, y) = (case.floats("gate"), case.floats("up"), case.floats("y"));
    let twin: Vec<f32> = gate.iter().zip(&up).map(|(&g, &u)| reference::activate(kind, g, u)).collect();
    same(case.name(), &twin, &y);
    for stream in streams {
        let (mut to, up) = (put(stream, &gate), put(stream, &up));
        let n = gate.len();
        activation(stream, kind, ViewMut::rows(&mut to, 1, n), View::rows(&up, 1, n));
        same(&format!("{}, {}", case.name(), stream.device()), &get(stream, &to), &y);
    }
}

fn norms(streams: &[Stream], case: &Case) {
    let (x, weight, eps) = (case.floats("x"), case.floats_or_none("weight"), case.float("eps"));
    let y = case.floats("y");
    same(case.name(), &reference::rms_norm_row(&x, weight.as_deref(), eps), &y);
    for stream in streams {
        let n = x.len();
        let (x, weight) = (put(stream, &x), weight.as_ref().map(|weight| put(stream, weight)));
        let mut out = put(stream, &vec![0.0; n]);
        rms_norm(stream, View::rows(&x, 1, n), weight.as_ref(), eps, ViewMut::rows(&mut out, 1, n));
        same(&format!("{}, {}", case.name(), stream.device()), &get(stream, &out), &y);
    }
}

fn rotations(streams: &[Stream], case: &Case) {
    let (x, cos, sin) = (case.floats("x"), case.floats("cos"), case.floats("sin"));
    for (style, expected) in [(RopeStyle::Halves, "halves"), (RopeStyle::Pairs, "pairs")] {
        let (what, expected) = (format!("{}, {expected}", case.name()), case.floats(expected));
        let mut twin = x.clone();
        reference::rope_head(&mut twin, style, &cos, &sin);
        same(&what, &twin, &expected);
        for stream in streams {
            let (mut turned, c, s) = (put(stream, &x), put(stream, &cos), put(stream, &sin));
            rope(stream, style, &c, &s, ViewMut::heads(&mut turned, 1, 1, x.len()));
            same(&format!("{what}, {}", stream.device()), &get(stream, &turned), &expected);
        }
    }
}

#[test]
fn attention() {
    let streams = all_streams();
    for case in cases("attention") {
        let keys = kv_rows(&case, "key");
        let values = match case.has("values") {
            true => kv_rows(&case, "value"),
            false => keys.iter().map(|key| key[..case.size("value_width")].to_vec()).collect(),
        };
        for row in case.list("rows") {
            let (position, first) = (row.size("position"), row.size("first"));
            let q = row.floats("q");
            let twin = reference::attention_row(&reference::AttendedRow {
                q: &q,
                keys: &keys[..=position],
                values: &values[..=position],
                first,
                scale: case.float("scale"),
                sink: row.floats_or_none("sink").map(|sink| sink[0]),
            });
            same(&format!("{}, {first} to {position}", case.name()), &twin, &row.floats("out"));
        }
        streams.iter().for_each(|stream| attend(stream, &case));
    }
}

/// What is stored for each position.
fn kv_rows(case: &Case, kind: &str) -> Vec<Vec<f32>> {
    let stored = match case.text("form") {
        "f16" => case.halves(&format!("stored_{kind}s")).into_iter().map(half::f16::to_f32).collect(),
        _ => case.floats(&format!("{kind}s")),
    };
    stored.chunks_exact(case.size(&format!("{kind}_width"))).map(<[f32]>::to_vec).collect()
}

/// One page after the other, one row at a time.
fn attend(stream: &Stream, case: &Case) {
    let (key_width, value_width) = (case.size("key_width"), case.size("value_width"));
    let keys = written(stream, case, "key");
    let values = case.has("values").then(|| written(stream, case, "value"));
    let pages = case.floats("keys").len() / key_width / PAGE_POSITIONS + 1;
    let tables = put(stream, &(0..pages as u32).collect::<Vec<_>>());
    for row in case.list("rows") {
        let (position, first) = (row.size("position"), row.size("first"));
        let (q, sinks) = (put(stream, &row.floats("q")), row.floats_or_none("sink"));
        let sinks = sinks.map(|sinks| put(stream, &sinks));
        let mut out = put(stream, &vec![0.0; value_width]);
        let args = AttentionArgs {
            q: View::heads(&q, 1, 1, key_width),
            kv: KvView { keys: &keys, values: values.as_ref(), kv_heads: 1, key_width, value_width },
            tables: &tables,
            table_stride: pages,
            sequences: &put(stream, &[0u32]),
            positions: &put(stream, &[position as u32]),
            mask: Mask::Sliding { window: position - first + 1 },
            sinks: sinks.as_ref(),
            scale: case.float("scale"),
        };
        ops::attention(stream, &args, ViewMut::heads(&mut out, 1, 1, value_width));
        let what = format!("{}, {first} to {position}, {}", case.name(), stream.device());
        same(&what, &get(stream, &out), &row.floats("out"));
    }
}

/// A cache that these keys or values were written to; what f16 made of them is as it should be.
fn written(stream: &Stream, case: &Case, kind: &str) -> KvBuffer {
    let (values, width) = (case.floats(&format!("{kind}s")), case.size(&format!("{kind}_width")));
    let rows = values.len() / width;
    let form = if case.text("form") == "f16" { KvForm::F16 } else { KvForm::F32 };
    let len = (rows / PAGE_POSITIONS + 1) * PAGE_POSITIONS * width;
    let mut cache = KvBuffer::zeros(stream.device(), form, len).expect("memory");
    let (from, slots) = (put(stream, &values), put(stream, &(0..rows as u32).collect::<Vec<_>>()));
    let from = View::heads(&from, rows, 1, width);
    kv_write(stream, &KvWrite { from, slots: &slots, width, column: 0 }, &mut cache);
    if let KvBuffer::F16(cache) = &cache {
        let stored: Vec<f32> = get(stream, cache).into_iter().map(half::f16::to_f32).collect();
        let expected: Vec<f32> =
            case.halves(&format!("stored_{kind}s")).into_iter().map(half::f16::to_f32).collect();
        same(&format!("{}, {kind}s, {}", case.name(), stream.device()), &stored[..rows * width], &expected);
    }
    cache
}

#[test]
fn gates() {
    let streams = all_streams();
    for case in cases("gate") {
        let logits = case.floats("logits");
        let correction = case.floats_or_none("correction");
        let (gate, top_k) = (rule(&case), case.size("top_k"));
        let expected: Vec<u32> = case.integers("ids").into_iter().map(|id| id as u32).collect();
        let (ids, weights) = reference::gate_row(&gate, top_k, &logits, correction.as_deref());
        assert_eq!(ids, expected, "{}", case.name());
        same(case.name(), &weights, &case.floats("weights"));
        for stream in &streams {
            let what = format!("{}, {}", case.name(), stream.device());
            let (from, correction) =
                (put(stream, &logits), correction.as_ref().map(|correction| put(stream, correction)));
            let (mut ids, mut weights) = (put(stream, &vec![0u32; top_k]), put(stream, &vec![0f32; top_k]));
            let out = GateOutput { ids: &mut ids, weights: &mut weights, top_k };
            select(stream, &gate, View::rows(&from, 1, logits.len()), correction.as_ref(), out);
            assert_eq!(get(stream, &ids), expected, "{what}");
            same(&what, &get(stream, &weights), &case.floats("weights"));
        }
    }
}

fn rule(case: &Case) -> Gate {
    let score = match case.text("score") {
        "softmax" => Score::Softmax,
        "sigmoid" => Score::Sigmoid,
        "softmax_of_selected" => Score::SoftmaxOfSelected,
        "sigmoid_of_selected" => Score::SigmoidOfSelected,
        other => panic!("no score of the name {other}"),
    };
    let groups = case.has("groups").then(|| {
        let groups = case.part("groups");
        let score = match groups.text("score") {
            "largest" => GroupScore::Largest,
            _ => GroupScore::TwoLargest,
        };
        Groups { count: groups.size("count"), taken: groups.size("taken"), score }
    });
    let normalise = case.floats_or_none("normalise").map(|sum| sum[0]);
    Gate { score, groups, normalise, scale: case.float("scale") }
}
