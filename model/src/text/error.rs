//! What can go wrong between text and tokens. None of it is worth a retry: the file or the request has to change.

use super::template::budget;
use super::template::render::FUEL_MAX;
use super::{stop, tokenizer};

#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{file}: cannot be read: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("{file}: {bytes} bytes, more than the {limit} that are read")]
    TooLarge { file: String, bytes: u64, limit: u64 },
    #[error("{file}: {detail}")]
    Invalid { file: String, detail: String },
    #[error("a text of {bytes} bytes is longer than the {limit} that are tokenized at once", limit = tokenizer::TEXT_BYTES_MAX)]
    TextTooLong { bytes: usize },
    #[error("the tokenizer of {file}: {detail}")]
    Tokenize { file: String, detail: String },

    #[error("{count} stop strings, more than {max}", max = stop::STOPS_MAX)]
    TooManyStops { count: usize },
    #[error("stop string {index} has {bytes} bytes; 1 to {max} are allowed", max = stop::STOP_BYTES_MAX)]
    StopLength { index: usize, bytes: usize },

    #[error("the chat template of {file} is not valid: {detail}")]
    TemplateSyntax { file: String, detail: String },
    #[error("the chat template of {file} ran past {max} instructions", max = FUEL_MAX)]
    TemplateFuel { file: String },
    #[error("the chat template of {file} ran past a limit: {halt}")]
    TemplateLimit { file: String, halt: budget::Halt },
    #[error("the chat template of {file} calls itself too deeply")]
    TemplateRecursion { file: String },
    #[error("the chat template of {file} refuses this conversation: {message}")]
    TemplateRaised { file: String, message: String },
    #[error("the chat template of {file} failed: {detail}")]
    TemplateFailed { file: String, detail: String },
    /// Never the template's fault alone: a panic of the engine, which ought to have refused.
    #[error("the engine that renders the chat template of {file} crashed: {detail}")]
    TemplateCrashed { file: String, detail: String },
    #[error("the chat templates of {file} are called {names:?}; none is called default")]
    NoDefaultTemplate { file: String, names: Vec<String> },
    #[error("the conversation does not fit a chat template: {detail}")]
    Conversation { detail: String },
}
