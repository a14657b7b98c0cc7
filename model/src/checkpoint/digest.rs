//! What a checkpoint holds, as one number: two machines compare it to know that they read the same weights.
//!
//! It is SHA-256 over what is made of the configuration, and of every file its length, its header and a sample of its
//! data. Neither path nor time nor the order of files counts. The sample is bounded, so that it takes milliseconds on a
//! checkpoint of any size: files that differ only where no sample lies have the same digest. That keeps apart other
//! models, other quantisations, other revisions, and copies that are cut off or still being written; not a checkpoint that
//! somebody forged.

use sha2::{Digest, Sha256};

use super::Checkpoint;
use crate::spec::ModelSpec;

/// Runs of data that are read over all files, and their bytes.
const SAMPLES: u64 = 1024;
const SAMPLE_BYTES: usize = 4096;
/// Of every file, however small its part of the whole is.
const FILE_SAMPLES_MIN: u64 = 4;

impl Checkpoint {
    /// The digest, in hexadecimal, of these weights as `spec` reads them.
    pub fn digest(&self, spec: &ModelSpec) -> String {
        let total: u64 = self.parts().map(|(_, data)| data.len() as u64).sum();
        let mut files: Vec<[u8; 32]> = self.parts().map(|(header, data)| file(header, data, total)).collect();
        files.sort_unstable();
        let mut whole = Sha256::new();
        whole.update(format!("{spec:?}"));
        files.iter().for_each(|digest| whole.update(digest));
        whole.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn file(header: &[u8], data: &[u8], total: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((data.len() as u64).to_le_bytes());
    hash.update((header.len() as u64).to_le_bytes());
    hash.update(header);
    let share = u128::from(SAMPLES) * data.len() as u128 / u128::from(total.max(1));
    let samples = (share as usize).max(FILE_SAMPLES_MIN as usize);
    // From the first byte to the last, evenly.
    let last = data.len().saturating_sub(SAMPLE_BYTES);
    for sample in 0..samples {
        let start = (last as u128 * sample as u128 / (samples - 1) as u128) as usize;
        hash.update(&data[start..(start + SAMPLE_BYTES).min(data.len())]);
    }
    hash.finalize().into()
}
