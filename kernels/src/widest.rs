//! Plain code that the compiler vectorises, compiled once for every instruction set and chosen at run time.
//!
//! Rust never fuses a product with a sum nor reorders floating point, so that all of them give the same bits.

use crate::device::Isa;

/// Code to be compiled for several instruction sets. `run` has to be `#[inline(always)]`, and so have its helpers.
pub trait Work {
    type Output;
    fn run(self) -> Self::Output;
}

/// Runs `work` with the widest vectors of this machine.
pub fn widest<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    match Isa::detect() {
        // SAFETY: the instructions are there.
        Isa::Avx512 => return unsafe { avx512(work) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { avx2(work) },
        Isa::Portable => {}
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sum<'a>(&'a [f32]);

    impl Work for Sum<'_> {
        type Output = f32;

        #[inline(always)]
        fn run(self) -> f32 {
            let mut lanes = [0.0f32; 16];
            for chunk in self.0.as_chunks::<16>().0 {
                for i in 0..16 {
                    lanes[i] += chunk[i] * 1.1 + 0.3;
                }
            }
            lanes.iter().sum()
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values: Vec<f32> = (0..4096).map(|i| (i as f32 * 0.37).sin()).collect();
        let plain = Sum(&values).run().to_bits();
        assert_eq!(widest(Sum(&values)).to_bits(), plain);
        #[cfg(target_arch = "x86_64")]
        if Isa::Avx2.is_available() {
            // SAFETY: the instructions are there.
            assert_eq!(unsafe { avx2(Sum(&values)) }.to_bits(), plain);
        }
    }
}
