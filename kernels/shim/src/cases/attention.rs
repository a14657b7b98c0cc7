//! `attention` over paged KV, `kv_write` and `kv_copy`.

use gaterail_kernels::ops::{
    self, AttentionArgs, KvBuffer, KvForm, KvView, KvWrite, Mask, PAGE_POSITIONS, PageCopy, kv_copy, kv_write,
};
use gaterail_kernels::{Device, Stream, View, ViewMut, reference};

use super::{Random, fetch, put, same};

/// `cases` random shapes, masks and lengths; from the 30th on wide ones too, as real models have.
pub fn attention_cases(device: &Device, cases: usize) {
    let stream = Stream::new(device);
    (0..cases as u64).for_each(|seed| attention_case(&stream, seed));
}

/// One sequence on scattered pages; rows at several positions.
fn attention_case(stream: &Stream, seed: u64) {
    let random = &mut Random(seed);
    let kv_heads = 1 + random.below(3);
    let group = if seed % 3 == 1 { 1 } else { 1 + random.below(11) };
    let heads = kv_heads * group;
    let latent = seed % 4 == 3;
    let wide = [40, 64, 80, 128, 144, 272][random.below(6)];
    let (key_width, value_width) = match (latent, seed >= 30) {
        (true, true) => (576, 512),
        (true, false) => (24 + random.below(30), 24),
        (false, true) => (wide, wide),
        (false, false) => (1 + random.below(40), 1 + random.below(40)),
    };
    // The longest has chunks for all threads even in one row.
    let length = [1usize, 63, 64, 65, 257, 300, 700][random.below(7)];
    let length = if seed % 15 == 14 { 1700 } else { length };
    // Narrow ones among them: rows that follow each other then begin and end at positions of their own.
    let narrow = [3, 10, 46, 70, 121, 250][random.below(6)];
    let size = if random.below(2) == 0 { narrow } else { 1 + random.below(300) };
    let mask = match random.below(3) {
        0 => Mask::Full,
        1 => Mask::Sliding { window: size },
        _ => Mask::Chunked { size },
    };
    let pages = length.div_ceil(PAGE_POSITIONS);
    let mut table: Vec<u32> = (0..pages as u32).map(|p| (p * 7 + 3) % (pages as u32 * 7 + 11)).collect();
    let page_count = pages * 7 + 11;
    let form = if seed % 5 < 3 { KvForm::F16 } else { KvForm::F32 };
    let cache = |width: usize| {
        let len = page_count * kv_heads * PAGE_POSITIONS * width;
        match form {
            KvForm::F32 => KvBuffer::F32(put(stream, &vec![f32::NAN; len])),
            KvForm::F16 => KvBuffer::F16(put(stream, &vec![half::f16::NAN; len])),
        }
    };
    let mut key_cache = cache(key_width);
    let mut value_cache = cache(value_width);
    let mut keys = random.values(length * kv_heads * key_width);
    let mut values = random.values(length * kv_heads * value_width);
    let slots: Vec<u32> = (0..length).map(|p| table[p / 64] * 64 + (p % 64) as u32).collect();
    let slots = put(stream, &slots);
    let (key_rows, value_rows) = (put(stream, &keys), put(stream, &values));
    let from = View::heads(&key_rows, length, kv_heads, key_width);
    kv_write(stream, &KvWrite { from, slots: &slots, width: key_width, column: 0 }, &mut key_cache);
    let from = View::heads(&value_rows, length, kv_heads, value_width);
    kv_write(stream, &KvWrite { from, slots: &slots, width: value_width, column: 0 }, &mut value_cache);

    // The first page is where it was copied; no other one is there.
    if seed % 2 == 1 {
        let copy = PageCopy { from: table[0], to: 0 };
        kv_copy(stream, copy, page_count, &mut key_cache);
        kv_copy(stream, copy, page_count, &mut value_cache);
        table[0] = copy.to;
    }
    if form == KvForm::F16 {
        for value in keys.iter_mut().chain(&mut values) {
            *value = half::f16::from_f32(*value).to_f32();
        }
    }

    // A second sequence, whose first two pages are those of the first one the other way round.
    let swapped = length >= 2 * PAGE_POSITIONS;
    let mut tables = table.repeat(2);
    if swapped {
        tables.swap(pages, pages + 1);
    }
    let stored_at = |sequence: u32, p: usize| match sequence == 1 && swapped && p < 2 * PAGE_POSITIONS {
        true => p ^ PAGE_POSITIONS,
        false => p,
    };

    // Rows apart from each other, and rows that follow each other, of two sequences.
    let ends = (0..9).map(|back| (length - 1).saturating_sub(8 - back));
    let positions: Vec<u32> = [0, length / 2].into_iter().chain(ends).map(|p| p as u32).collect();
    let rows = positions.len();
    let sequences: Vec<u32> = (0..rows as u32).map(|row| u32::from(row >= 6)).collect();
    let q = random.values(rows * heads * key_width);
    // In every sixth case the first head's sink leaves nothing for the values.
    let sinks = seed.is_multiple_of(3).then(|| random.values(heads));
    let sinks = sinks.map(|mut sinks| {
        sinks[0] += if seed.is_multiple_of(6) { 200.0 } else { 0.0 };
        sinks
    });
    let sinks_buffer = sinks.as_ref().map(|sinks| put(stream, sinks));
    let q_buffer = put(stream, &q);
    let mut out = put(stream, &vec![0.0; rows * heads * value_width]);
    let args = AttentionArgs {
        q: View::heads(&q_buffer, rows, heads, key_width),
        kv: KvView {
            keys: &key_cache,
            values: (!latent).then_some(&value_cache),
            kv_heads,
            key_width,
            value_width,
        },
        tables: &put(stream, &tables),
        table_stride: table.len(),
        sequences: &put(stream, &sequences),
        positions: &put(stream, &positions),
        mask,
        sinks: sinks_buffer.as_ref(),
        scale: 0.7,
    };
    ops::attention(stream, &args, ViewMut::heads(&mut out, rows, heads, value_width));

    let mut expected = Vec::new();
    for (row, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let column = |all: &[f32], width: usize| -> Vec<Vec<f32>> {
                let at = |p: usize| (stored_at(sequences[row], p) * kv_heads + kv_head) * width;
                (0..=position as usize).map(|p| all[at(p)..at(p) + width].to_vec()).collect()
            };
            let keys = column(&keys, key_width);
            let values = match latent {
                true => keys.iter().map(|key| key[..value_width].to_vec()).collect(),
                false => column(&values, value_width),
            };
            expected.extend(reference::attention_row(&reference::AttendedRow {
                q: &q[(row * heads + head) * key_width..][..key_width],
                keys: &keys,
                values: &values,
                first: mask.first(position as usize),
                scale: 0.7,
                sink: sinks.as_ref().map(|sinks| sinks[head]),
            }));
        }
    }
    same(&format!("attention, seed {seed}, {mask:?}"), &fetch(stream, &out), &expected);

    // The last row by itself: another way to share the work out, the same bits.
    let last = rows - 1;
    let alone = put(stream, &q[last * heads * key_width..]);
    let mut out = put(stream, &vec![0.0; heads * value_width]);
    let args = AttentionArgs {
        q: View::heads(&alone, 1, heads, key_width),
        sequences: &put(stream, &sequences[last..]),
        positions: &put(stream, &positions[last..]),
        ..args
    };
    ops::attention(stream, &args, ViewMut::heads(&mut out, 1, heads, value_width));
    let expected = &expected[last * heads * value_width..];
    same(&format!("attention, seed {seed}, {mask:?}, one row"), &fetch(stream, &out), expected);
}
