//! Ids as types of their own, so that a layer is never taken for an expert.

use serde::{Deserialize, Serialize};

/// A layer of the model, counted from 0 over dense and sparse layers alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerId(pub u32);

/// An expert of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExpertId(pub u32);
