//! The passes over all logits [V]: block maxima, sums of exponentials, the largest logits.
//!
//! All are written so that the compiler can use vector registers of any width (`widest`), and give the same bits
//! whichever it uses: maxima are those of integers, and sums are halved from the ends of a block, element by element.
//! They are plain loops: what `collect` or `fold` is compiled to knows nothing of those registers, and takes twice as long.
//!
//! | file | |
//! |---|---|
//! | [`maxima`] | block by block what is largest; the largest of all, and who ranks before whom |
//! | [`weights`] | exponentials and their sums |

mod maxima;
mod weights;

pub use maxima::{Maxima, Ranked};
pub use weights::{Before, Weights};

/// Logits of a block whose maximum is kept, and whose exponentials are summed in f32 before the sum goes on in f64.
pub const BLOCK: usize = 64;
