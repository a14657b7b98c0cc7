//! Between text and tokens.
//!
//! | file | |
//! |---|---|
//! | [`tokenizer`] | text to ids and back; the special tokens of a model folder |
//! | `gguf` | tokenizer and template of a GGUF file |
//! | `guard` | what a `tokenizer.json` from anywhere may ask for |
//! | `pieces` | the bytes of one token |
//! | [`detokenize`] | ids to text while they come, never half a character |
//! | `window` | the same for decoders that see whole lists of tokens |
//! | [`answer`] | the text of one growing answer, and where it ends |
//! | [`stop`] | stop strings across the borders of tokens |
//! | [`template`] | a conversation to the prompt that the model was trained on |
//! | [`error`] | what can go wrong in any of them |

pub mod answer;
pub mod detokenize;
pub mod error;
mod files;
mod gguf;
mod guard;
mod pieces;
pub mod stop;
pub mod template;
pub mod tokenizer;
mod window;

pub use answer::{AnswerText, Ending};
pub use detokenize::Detokenizer;
pub use error::TextError;
pub use stop::{StopMatcher, StopOutcome};
pub use template::{ChatInput, ChatTemplate};
pub use tokenizer::Tokenizer;
