//! What a command can fail with: a sentence for a person.

use std::io;

use gaterail_kernels::KernelError;
use gaterail_model::ModelError;
use gaterail_model::checkpoint::CheckpointError;
use gaterail_model::config::ConfigError;
use gaterail_model::sampler::SamplerError;
use gaterail_model::text::TextError;
use gaterail_model::walk::StepError;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Sampler(#[from] SamplerError),
    #[error("{0}")]
    Hub(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The command line asks for what makes no sense.
    #[error("{0}")]
    Usage(String),
    /// What was asked for cannot be done; the text says why and what can.
    #[error("{0}")]
    Refused(String),
}

impl CliError {
    /// An I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> CliError {
        let what = what.into();
        move |source| CliError::Io { what, source }
    }

    /// 2 for a wrong command line, as clap has it; 1 for all else.
    pub fn exit_code(&self) -> u8 {
        if matches!(self, CliError::Usage(_)) { 2 } else { 1 }
    }

    /// Whether the reader of our output went away, as `head` does.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, CliError::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<crate::hub::HubError> for CliError {
    fn from(error: crate::hub::HubError) -> CliError {
        CliError::Hub(error.to_string())
    }
}
