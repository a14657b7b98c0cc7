//! Token counts in OpenAI's shape.

use serde::Serialize;

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct UsageBody {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PromptDetails {
    pub cached_tokens: usize,
}

impl UsageBody {
    pub fn new(prompt_tokens: usize) -> UsageBody {
        let mut usage = UsageBody { prompt_tokens, ..UsageBody::default() };
        usage.generated(0);
        usage
    }

    /// So many more tokens of an answer.
    pub fn generated(&mut self, tokens: usize) {
        self.completion_tokens += tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }

    pub fn cached(&mut self, tokens: usize) {
        self.prompt_tokens_details.cached_tokens += tokens;
    }
}
