//! From a checkpoint and a specification to weights: the table of expected tensors, the check against it, the loaders.

mod account;
pub mod cache;
mod expected;
mod experts;
mod int4;
mod load;
mod mixed;
mod outline;
mod packed;
mod precision;
mod recall;
mod trunk;

pub use account::{Share, account, declared_by_role, resident_by_role, resident_bytes};
pub use expected::{Expected, Form, Part, Role, Slot, expected_tensors, stored_form};
pub use experts::{
    ExpertShard, LoadFrom, check_cover, check_slices, inventory, load_shard, load_slices, load_slices_onto,
    unit_length,
};
pub use load::{LoadError, Loader, Loading, check_tensors};
pub use mixed::mixed_layers;
pub use outline::{check_for_cards, expert_outlines, precision_for_cards};
pub use packed::packed_slices;
pub use precision::{Precision, Use};
pub use trunk::{
    AttentionWeights, Latent, LayerWeights, Linear, Mlp, MlpWeights, SparseWeights, TrunkWeights,
};
