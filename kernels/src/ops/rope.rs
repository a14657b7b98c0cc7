//! `rope`: rotates the first 2R columns of every (row, head) in place by the row's angles.
//!
//! x `[T, heads, 2R]`, cos and sin `[T, R]`.

use super::run_of;
use crate::buffer::Buffer;
use crate::cpu::rows::{rope_halves, rope_pairs};
use crate::stream::Stream;
use crate::view::ViewMut;

/// Which columns make a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// (i, i + R): GPT-NeoX, Llama in Hugging Face's layout.
    Halves,
    /// (2i, 2i + 1): DeepSeek, Llama 4.
    Pairs,
}

pub fn rope(stream: &Stream, style: RopeStyle, cos: &Buffer<f32>, sin: &Buffer<f32>, mut x: ViewMut<'_>) {
    let xs = x.layout();
    let half = xs.width / 2;
    assert!(xs.width.is_multiple_of(2), "rope: pairs");
    assert!(xs.rows * half <= cos.len() && cos.len() == sin.len(), "rope: angles");
    if let Some(queue) = stream.cuda() {
        return crate::cuda::rope(queue, style, cos.cuda(), sin.cuda(), x.strided());
    }
    let cpu = stream.cpu();
    let parts = cpu.parts_for(xs.rows, xs.rows * xs.heads * xs.width);
    let shared = x.shared();
    cpu.pool.run(parts, &|part| {
        for row in run_of(xs.rows, parts, part) {
            let (cos, sin) = (&cos.host()[row * half..][..half], &sin.host()[row * half..][..half]);
            for head in 0..xs.heads {
                // SAFETY: every row belongs to one part.
                let x = unsafe { shared.slice(row, head, 0, xs.width) };
                match style {
                    RopeStyle::Halves => rope_halves(cpu.isa, x, cos, sin),
                    RopeStyle::Pairs => rope_pairs(cpu.isa, x, cos, sin),
                }
            }
        }
    });
}
