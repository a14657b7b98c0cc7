//! Random bytes of a kind, fast.

use gaterail_kernels::ElementType;

/// What a tensor is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Evenly spread around `mean` with the standard deviation `scale`.
    Values {
        element: ElementType,
        mean: f32,
        scale: f32,
    },
    /// f32, all alike.
    Constant(f32),
    ConstantByte(u8),
    /// E4M3 codes without NaN, of magnitudes up to 240.
    Fp8,
    /// Any bytes.
    Bytes,
}

/// A stream of random bytes (xoroshiro128++, Blackman and Vigna 2019).
pub struct Source {
    state: [u64; 2],
}

impl Source {
    pub fn new(seed: u64) -> Source {
        let mut source =
            Source { state: [seed ^ 0x9e37_79b9_7f4a_7c15, seed.wrapping_mul(0xbf58_476d_1ce4_e5b9) | 1] };
        for _ in 0..8 {
            source.next();
        }
        source
    }

    fn next(&mut self) -> u64 {
        let [a, mut b] = self.state;
        let result = a.wrapping_add(b).rotate_left(17).wrapping_add(a);
        b ^= a;
        self.state = [a.rotate_left(49) ^ b ^ (b << 21), b.rotate_left(28)];
        result
    }

    /// Fills `bytes`, a whole number of the kind's elements.
    pub fn fill(&mut self, kind: Kind, bytes: &mut [u8]) {
        match kind {
            Kind::Values { element, mean, scale } => self.values(element, mean, scale, bytes),
            Kind::Constant(value) => {
                bytes.chunks_exact_mut(4).for_each(|raw| raw.copy_from_slice(&value.to_le_bytes()));
            }
            Kind::ConstantByte(value) => bytes.fill(value),
            // Clearing the lowest exponent bit keeps every code away from the NaN.
            Kind::Fp8 => self.each(bytes, |raw| raw & !0x08_08_08_08_08_08_08_08),
            Kind::Bytes => self.each(bytes, |raw| raw),
        }
    }

    fn each(&mut self, bytes: &mut [u8], of: impl Fn(u64) -> u64) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&of(self.next()).to_le_bytes()[..chunk.len()]);
        }
    }

    fn values(&mut self, element: ElementType, mean: f32, scale: f32, bytes: &mut [u8]) {
        // An even spread over ± width has the standard deviation width / sqrt(3).
        let width = scale * 3f32.sqrt() / 32768.0;
        let mut bits = 0u64;
        for (index, raw) in bytes.chunks_exact_mut(element.bytes()).enumerate() {
            if index % 4 == 0 {
                bits = self.next();
            }
            let value = f32::from(bits as i16).mul_add(width, mean);
            bits >>= 16;
            match element {
                ElementType::F32 => raw.copy_from_slice(&value.to_le_bytes()),
                ElementType::F16 => raw.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
                ElementType::Bf16 => raw.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_codes_are_numbers() {
        let mut bytes = vec![0u8; 4099];
        Source::new(1).fill(Kind::Fp8, &mut bytes);
        assert!(bytes.iter().all(|code| code & 0x7f != 0x7f));
        assert!(bytes.iter().any(|code| code & 0x80 != 0) && bytes.iter().any(|code| code & 0x70 == 0x70));
    }

    #[test]
    fn values_have_the_mean_and_the_spread() {
        let mut bytes = vec![0u8; 40_000];
        Source::new(2).fill(Kind::Values { element: ElementType::F32, mean: 1.0, scale: 0.5 }, &mut bytes);
        let values: Vec<f64> = bytes
            .chunks_exact(4)
            .map(|raw| f64::from(f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]])))
            .collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt();
        assert!((mean - 1.0).abs() < 0.03 && (spread - 0.5).abs() < 0.03, "{mean} {spread}");
    }
}
