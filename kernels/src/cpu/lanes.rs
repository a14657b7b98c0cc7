//! Sixteen f32 lanes, in three instruction sets.

use crate::buffer::Plain;

pub(crate) const LANES: usize = 16;
/// 1.5 * 2^23: adding it to a number within +-2^22 rounds half to even and leaves the integer in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// Sixteen f32 values that one operation treats alike.
///
/// # Safety
/// The methods of an implementation may be called only where its instructions are available; `by_isa!` sees to that.
pub(crate) trait Lanes: Copy {
    /// Whether a 4 x 4 tile of accumulators fits the registers.
    const WIDE: bool;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounded half to even.
    unsafe fn store_f16(self, to: *mut u16);
    /// `self * b + c` with one rounding.
    unsafe fn fma(self, b: Self, c: Self) -> Self;

    /// The largest bits of a magnitude among `sixteens` times 16 elements. As integers magnitudes order like the values, infinity
    /// and NaN on top.
    unsafe fn largest(from: *const f32, sixteens: usize) -> u32;
    /// `sixteens` times 16 codes, `x * r` rounded half to even by way of adding `ROUND`, and their sum. The products lie within
    /// +-127.5.
    unsafe fn codes(from: *const f32, sixteens: usize, r: f32, to: *mut i8) -> i32;

    /// The fixed tree of ARITHMETIC.md, 2, for four at once.
    unsafe fn sums(four: [Self; 4]) -> [f32; 4];
    /// Asks for the cache line at an address that will be read soon; any address will do.
    unsafe fn prefetch(at: *const u8);
    /// The same for a line that will be read at once: into the first-level cache.
    unsafe fn prefetch_near(at: *const u8);
}

/// `(+8), (+4), (+2), (+1)` over the lanes.
#[inline(always)]
pub(crate) fn tree(lane: &[f32; LANES]) -> f32 {
    let mut s8 = [0.0f32; 8];
    for j in 0..8 {
        s8[j] = lane[j] + lane[j + 8];
    }
    let mut s4 = [0.0f32; 4];
    for j in 0..4 {
        s4[j] = s8[j] + s8[j + 4];
    }
    (s4[0] + s4[2]) + (s4[1] + s4[3])
}

/// A stored element that lanes can load.
pub(crate) trait Element: Plain {
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    fn widen(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const f32) -> L {
        // SAFETY: passed on to the caller.
        unsafe { L::load(from) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Element for half::bf16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const half::bf16) -> L {
        // SAFETY: bf16 is a transparent u16; the rest is passed on to the caller.
        unsafe { L::load_bf16(from as *const u16) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
}

impl Element for half::f16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const half::f16) -> L {
        // SAFETY: f16 is a transparent u16; the rest is passed on to the caller.
        unsafe { L::load_f16(from as *const u16) }
    }
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    pub(crate) fn map(f: impl Fn(usize) -> f32) -> Portable {
        Portable(std::array::from_fn(f))
    }

    #[inline(always)]
    pub(crate) fn lane(&self, j: usize) -> f32 {
        self.0[j]
    }
}

#[allow(clippy::undocumented_unsafe_blocks)] // every pointer below is the caller's promise of 16 elements
impl Lanes for Portable {
    const WIDE: bool = false;
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Portable::map(|j| unsafe { from.add(j).read() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        Portable::map(|j| f32::from_bits((unsafe { from.add(j).read() } as u32) << 16))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        Portable::map(|j| half::f16::from_bits(unsafe { from.add(j).read() }).to_f32())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { to.copy_from_nonoverlapping(self.0.as_ptr(), LANES) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        for (j, value) in self.0.into_iter().enumerate() {
            unsafe { to.add(j).write(half::f16::from_f32(value).to_bits()) }
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Portable::map(|j| self.0[j].mul_add(b.0[j], c.0[j]))
    }
    #[inline(always)]
    unsafe fn largest(from: *const f32, sixteens: usize) -> u32 {
        (0..sixteens * LANES).fold(0, |m, j| m.max(unsafe { from.add(j).read() }.to_bits() & 0x7fff_ffff))
    }
    #[inline(always)]
    unsafe fn codes(from: *const f32, sixteens: usize, r: f32, to: *mut i8) -> i32 {
        let mut sum = 0;
        for j in 0..sixteens * LANES {
            let x = unsafe { from.add(j).read() };
            let q = ((x * r + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
            sum += q;
            unsafe { to.add(j).write(q as i8) };
        }
        sum
    }
    #[inline(always)]
    unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
        four.map(|lanes| tree(&lanes.0))
    }
    #[inline(always)]
    unsafe fn prefetch(_at: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_near(_at: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)] // as the trait says: 16 elements behind every pointer, instructions available
pub(crate) mod x86 {
    use super::{LANES, Lanes, ROUND};
    use std::arch::x86_64::*;

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(pub(crate) __m512);

    impl Lanes for Avx512 {
        const WIDE: bool = true;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx512(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx512(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            unsafe {
                let halves = _mm256_loadu_si256(from as *const __m256i);
                Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))))
            }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(from as *const __m256i))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            unsafe {
                let halves = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0);
                _mm256_storeu_si256(to as *mut __m256i, halves);
            }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn largest(from: *const f32, sixteens: usize) -> u32 {
            unsafe {
                let (mut most, mask) = (_mm512_setzero_si512(), _mm512_set1_epi32(i32::MAX));
                for i in 0..sixteens {
                    let bits = _mm512_loadu_si512(from.add(i * LANES) as *const __m512i);
                    most = _mm512_max_epu32(most, _mm512_and_si512(bits, mask));
                }
                _mm512_reduce_max_epu32(most)
            }
        }
        #[inline(always)]
        unsafe fn codes(from: *const f32, sixteens: usize, r: f32, to: *mut i8) -> i32 {
            unsafe {
                let mut sum = _mm512_setzero_si512();
                for i in 0..sixteens {
                    let product = _mm512_mul_ps(_mm512_loadu_ps(from.add(i * LANES)), _mm512_set1_ps(r));
                    let rounded = _mm512_castps_si512(_mm512_add_ps(product, _mm512_set1_ps(ROUND)));
                    let q = _mm512_sub_epi32(rounded, _mm512_set1_epi32(ROUND.to_bits() as i32));
                    _mm_storeu_si128(to.add(i * LANES) as *mut __m128i, _mm512_cvtepi32_epi8(q));
                    sum = _mm512_add_epi32(sum, q);
                }
                _mm512_reduce_add_epi32(sum)
            }
        }
        #[inline(always)]
        unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
            unsafe {
                tree(four.map(|x| {
                    let (low, high) = (_mm512_castps512_ps256(x.0), _mm512_extractf32x8_ps::<1>(x.0));
                    _mm256_add_ps(low, high)
                }))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at as *const i8) }
        }
        #[inline(always)]
        unsafe fn prefetch_near(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at as *const i8) }
        }
    }

    /// The last three levels of the tree, for four vectors of eight at once: `(+4)`, then `(+2)` of two vectors in one
    /// register, then `(+1)` of all four.
    #[inline(always)]
    unsafe fn tree(s8: [__m256; 4]) -> [f32; 4] {
        unsafe {
            let [a, b, c, d] =
                s8.map(|x| _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x)));
            let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
            let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
            let even = _mm_shuffle_ps::<0b10_00_10_00>(ab, cd);
            let odd = _mm_shuffle_ps::<0b11_01_11_01>(ab, cd);
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_add_ps(even, odd));
            sums
        }
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(pub(crate) __m256, pub(crate) __m256);

    const HALF: usize = LANES / 2;

    impl Lanes for Avx2 {
        const WIDE: bool = false;
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            #[inline(always)]
            unsafe fn widen(from: *const u16) -> __m256 {
                unsafe {
                    let halves = _mm_loadu_si128(from as *const __m128i);
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
                }
            }
            unsafe { Avx2(widen(from), widen(from.add(HALF))) }
        }
        #[inline(always)]
        unsafe fn load_f16(from: *const u16) -> Self {
            unsafe {
                let low = _mm_loadu_si128(from as *const __m128i);
                let high = _mm_loadu_si128(from.add(HALF) as *const __m128i);
                Avx2(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(HALF), self.1);
            }
        }
        #[inline(always)]
        unsafe fn store_f16(self, to: *mut u16) {
            unsafe {
                let low = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.0);
                let high = _mm256_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(self.1);
                _mm_storeu_si128(to as *mut __m128i, low);
                _mm_storeu_si128(to.add(HALF) as *mut __m128i, high);
            }
        }
        #[inline(always)]
        unsafe fn largest(from: *const f32, sixteens: usize) -> u32 {
            unsafe {
                let (mut most, mask) = (_mm256_setzero_si256(), _mm256_set1_epi32(i32::MAX));
                for i in 0..2 * sixteens {
                    let bits = _mm256_loadu_si256(from.add(i * HALF) as *const __m256i);
                    most = _mm256_max_epu32(most, _mm256_and_si256(bits, mask));
                }
                let four = _mm_max_epu32(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
                let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
                let one = _mm_max_epu32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
                _mm_cvtsi128_si32(one) as u32
            }
        }
        #[inline(always)]
        unsafe fn codes(from: *const f32, sixteens: usize, r: f32, to: *mut i8) -> i32 {
            #[inline(always)]
            unsafe fn eight(from: *const f32, r: f32) -> __m256i {
                unsafe {
                    let product = _mm256_mul_ps(_mm256_loadu_ps(from), _mm256_set1_ps(r));
                    let rounded = _mm256_castps_si256(_mm256_add_ps(product, _mm256_set1_ps(ROUND)));
                    _mm256_sub_epi32(rounded, _mm256_set1_epi32(ROUND.to_bits() as i32))
                }
            }
            unsafe {
                let mut sum = _mm256_setzero_si256();
                for i in 0..sixteens {
                    let from = from.add(i * LANES);
                    let (low, high) = (eight(from, r), eight(from.add(HALF), r));
                    // Packing works within halves; the order comes right with the permutation.
                    let pairs = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(low, high));
                    let bytes =
                        _mm_packs_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
                    _mm_storeu_si128(to.add(i * LANES) as *mut __m128i, bytes);
                    sum = _mm256_add_epi32(sum, _mm256_add_epi32(low, high));
                }
                let four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
                let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
                _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
            }
        }
        #[inline(always)]
        unsafe fn sums(four: [Self; 4]) -> [f32; 4] {
            unsafe { tree(four.map(|x| _mm256_add_ps(x.0, x.1))) }
        }
        #[inline(always)]
        unsafe fn prefetch(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at as *const i8) }
        }
        #[inline(always)]
        unsafe fn prefetch_near(at: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at as *const i8) }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
        }
    }
}

/// Makes `$name(isa, …)` from a kernel that is generic over `Lanes`: three instantiations and the choice.
macro_rules! by_isa {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $kernel:ident $(<$extra:ty>)?) => {
        $(#[$doc])*
        #[allow(clippy::too_many_arguments)]
        pub(crate) fn $name(isa: $crate::device::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx512($($arg: $ty),*) {
                $kernel::<$crate::cpu::lanes::x86::Avx512 $(, $extra)?>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            #[allow(clippy::too_many_arguments)]
            unsafe fn avx2($($arg: $ty),*) {
                $kernel::<$crate::cpu::lanes::x86::Avx2 $(, $extra)?>($($arg),*)
            }
            match isa {
                // SAFETY: a device is made only with instructions that the machine has.
                #[cfg(target_arch = "x86_64")]
                $crate::device::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::device::Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => $kernel::<$crate::cpu::lanes::Portable $(, $extra)?>($($arg),*),
            }
        }
    };
}
pub(crate) use by_isa;
