//! Whether a sequence ends with a token, and why: a pure decision.

use super::params::SamplingParams;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// Something that ends it was said.
    Stop(StopCause),
    /// There is no room for more.
    Length,
}

/// What ended a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopCause {
    /// A stop id, of the model or of the request.
    Token(u32),
    /// A stop string, by its place in the request.
    String(usize),
}

/// How far a sequence is, with the token that was just sampled.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Tokens of the output, this one included.
    pub generated: usize,
    /// Tokens that the output may have: what was asked for, or what the context leaves.
    pub max_generated: usize,
    /// The stop string that this token's text completed.
    pub stop_string: Option<usize>,
}

/// Decides whether the sequence ends with `token`; `stop_ids` are the model's own.
///
/// Before `min_tokens` only the length can end it. A token wins over a string and both over the length.
pub fn finish(
    params: &SamplingParams,
    stop_ids: &[u32],
    token: u32,
    progress: Progress,
) -> Option<FinishReason> {
    let may_stop = progress.generated >= params.min_tokens;
    let ends = params.stop_token_ids.contains(&token) || (!params.ignore_eos && stop_ids.contains(&token));
    if may_stop && ends {
        return Some(FinishReason::Stop(StopCause::Token(token)));
    }
    if let (true, Some(which)) = (may_stop, progress.stop_string) {
        return Some(FinishReason::Stop(StopCause::String(which)));
    }
    (progress.generated >= progress.max_generated).then_some(FinishReason::Length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons() {
        use FinishReason::{Length, Stop};
        use StopCause::{String, Token};
        let params = SamplingParams { stop_token_ids: vec![5], min_tokens: 2, ..SamplingParams::default() };
        let ignoring = SamplingParams { ignore_eos: true, ..params.clone() };
        // params, token, generated, stop string -> reason; the model stops at 4, there is room for 9
        let table = [
            (&params, 4, 3, None, Some(Stop(Token(4)))),
            (&params, 5, 3, Some(1), Some(Stop(Token(5)))),
            (&params, 6, 3, Some(1), Some(Stop(String(1)))),
            (&params, 6, 9, Some(1), Some(Stop(String(1)))),
            (&params, 6, 9, None, Some(Length)),
            (&params, 6, 3, None, None),
            (&params, 4, 1, Some(0), None),
            (&params, 4, 2, None, Some(Stop(Token(4)))),
            (&ignoring, 4, 3, None, None),
            (&ignoring, 5, 3, None, Some(Stop(Token(5)))),
        ];
        for (params, token, generated, stop_string, expected) in table {
            let progress = Progress { generated, max_generated: 9, stop_string };
            assert_eq!(finish(params, &[4], token, progress), expected, "{token} after {generated}");
        }
    }
}
