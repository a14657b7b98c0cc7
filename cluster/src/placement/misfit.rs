//! A plan that does not fit: what is missing, and which plans would do.

use std::fmt;

/// Why a model's experts cannot be placed as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Misfit {
    /// "3 copies want 3 workers, and there are 2"
    pub what: String,
    /// Bytes of memory that are missing over all workers; 0 where it is not a matter of bytes.
    pub missing_bytes: u64,
    /// Plans that would fit.
    pub ways: Vec<WayOut>,
}

/// A plan that would fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// "--parallel tp --expert-copies 1"
    pub flags: String,
    /// What the fullest worker would hold.
    pub bytes_max: u64,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the experts do not fit: {}", self.what)?;
        if self.ways.is_empty() {
            return write!(f, "; no other mode, number of copies or precision would do");
        }
        write!(f, "; these plans would fit:")?;
        for WayOut { flags, bytes_max } in &self.ways {
            write!(f, "\n  {flags} (up to {} MB a worker)", bytes_max.div_ceil(1_000_000))?;
        }
        Ok(())
    }
}
