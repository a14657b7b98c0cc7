//! What chat and completions have in common: model, streaming, how many answers, how long, sampled how.

use super::error::ApiError;
use super::fields::Fields;
use super::limits::RequestLimits;
use super::sampling::RequestedSampling;
use super::unsupported;

/// What a stream carries beside the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming {
    /// One more chunk with the usage, before the end.
    pub include_usage: bool,
    /// The usage so far in every chunk.
    pub continuous_usage: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    pub model: Option<String>,
    /// `None`: the answer in one piece.
    pub streaming: Option<Streaming>,
    /// Answers to every prompt.
    pub choices: u32,
    pub max_tokens: Option<usize>,
    pub sampling: RequestedSampling,
    pub cache_salt: Option<String>,
    /// Special tokens have no text.
    pub skip_special: bool,
    /// The text ends with the stop string that ended it.
    pub include_stop: bool,
    /// `token_id:17` in the place of a token's text, in logprobs.
    pub tokens_as_ids: bool,
}

impl Generation {
    pub fn read(fields: &mut Fields, limits: &RequestLimits) -> Result<Generation, ApiError> {
        unsupported::refuse(fields)?;
        let generation = Generation {
            model: fields.string("model", limits.name_bytes_max)?,
            streaming: read_streaming(fields)?,
            choices: fields.count("n", 1..=u64::from(limits.choices_max))?.unwrap_or(1) as u32,
            max_tokens: read_max_tokens(fields)?,
            sampling: RequestedSampling::read(fields)?,
            cache_salt: fields.string("cache_salt", limits.name_bytes_max)?,
            skip_special: fields.flag("skip_special_tokens")?.unwrap_or(true),
            include_stop: fields.flag("include_stop_str_in_output")?.unwrap_or(false),
            tokens_as_ids: fields.flag("return_tokens_as_token_ids")?.unwrap_or(false),
        };
        if let Some(max) = generation.max_tokens.filter(|max| generation.sampling.min_tokens > *max) {
            let min = generation.sampling.min_tokens;
            return Err(ApiError::invalid(
                "min_tokens",
                format!("min_tokens {min} is more than max_tokens {max}"),
            ));
        }
        Ok(generation)
    }
}

/// The newer name wins.
fn read_max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let range = 0..=u64::from(u32::MAX);
    let newer = fields.count("max_completion_tokens", range.clone())?;
    let older = fields.count("max_tokens", range)?;
    Ok(newer.or(older).map(|max| max as usize))
}

fn read_streaming(fields: &mut Fields) -> Result<Option<Streaming>, ApiError> {
    let stream = fields.flag("stream")?.unwrap_or(false);
    let options = fields.object("stream_options")?;
    match options {
        Some(_) if !stream => {
            Err(ApiError::invalid("stream_options", "stream_options is only for requests with stream: true"))
        }
        options if stream => {
            let mut options = Fields::from(options.unwrap_or_default());
            let mut flag = |name: &str| match options.flag(name) {
                Ok(flag) => Ok(flag.unwrap_or(false)),
                Err(error) => Err(ApiError::invalid(
                    format!("stream_options.{name}"),
                    format!("stream_options.{}", error.message),
                )),
            };
            Ok(Some(Streaming {
                include_usage: flag("include_usage")?,
                continuous_usage: flag("continuous_usage_stats")?,
            }))
        }
        _ => Ok(None),
    }
}
