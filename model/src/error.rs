//! What can go wrong between a folder and a running model.

use crate::checkpoint::CheckpointError;
use crate::config::ConfigError;
use crate::walk::StepError;
use crate::weights::LoadError;
use gaterail_kernels::KernelError;

#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
}
