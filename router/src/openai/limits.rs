//! How much one request may ask for. Every limit is in the message of its refusal.

/// Limits on what a body says. Those of sockets are `http::ListenLimits`.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestLimits {
    pub body_bytes_max: usize,
    /// Values in a body: a list of a million small numbers takes thirty times its bytes.
    pub values_max: usize,
    pub choices_max: u32,
    /// Prompts in one request for completions.
    pub prompts_max: usize,
    pub messages_max: usize,
    pub template_arguments_bytes_max: usize,
    pub name_bytes_max: usize,
    /// Log-probabilities of prompts in one answer.
    pub prompt_logprobs_max: usize,
    /// Log-probabilities of generated tokens in one answer that is no stream: it is whole in memory before it is sent.
    pub logprobs_max: usize,
}

impl Default for RequestLimits {
    fn default() -> RequestLimits {
        RequestLimits {
            body_bytes_max: 32 << 20,
            values_max: 1 << 20,
            choices_max: 16,
            prompts_max: 128,
            messages_max: 4096,
            template_arguments_bytes_max: 64 << 10,
            name_bytes_max: 512,
            prompt_logprobs_max: 1 << 19,
            logprobs_max: 1 << 20,
        }
    }
}
