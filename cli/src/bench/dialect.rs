//! What the server lets itself be told: the body of a request, with the extensions that it takes.

use serde_json::{Value, json};

use crate::endpoint::{Endpoint, Failure};

#[derive(Clone, Debug, PartialEq)]
pub struct Dialect {
    pub model: String,
    pub chat: bool,
    pub temperature: f64,
    /// `ignore_eos` and `min_tokens`: answers as long as they were asked for.
    pub exact_length: bool,
    /// `stream_options` with `include_usage`.
    pub usage: bool,
    /// `max_completion_tokens` instead of `max_tokens`.
    pub new_limit: bool,
}

impl Dialect {
    /// Asks for two tokens, with all extensions first; whatever a server refuses with 400 or 422 is left away.
    pub fn find(
        endpoint: &Endpoint,
        model: String,
        chat: bool,
        temperature: f64,
    ) -> Result<Dialect, Failure> {
        let full = Dialect { model, chat, temperature, exact_length: true, usage: true, new_limit: false };
        let tries = [(true, true), (false, true), (true, false), (false, false)];
        let limits: &[bool] = if chat { &[false, true] } else { &[false] };
        let mut refused = None;
        for new_limit in limits {
            for (exact_length, usage) in tries {
                let dialect = Dialect { exact_length, usage, new_limit: *new_limit, ..full.clone() };
                match dialect.try_out(endpoint) {
                    Ok(()) => return Ok(dialect),
                    // The first refusal says most.
                    Err(error @ Failure::Status { status: 400 | 422, .. }) => {
                        refused = refused.or(Some(error))
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        // At least one was tried, and each has ended the search or was refused.
        Err(refused.expect("a refusal"))
    }

    fn try_out(&self, endpoint: &Endpoint) -> Result<(), Failure> {
        let mut stream = endpoint.stream(&self.url(endpoint), self.body("Hello", 2))?;
        while stream.next()?.is_some() {}
        stream.finish();
        Ok(())
    }

    pub fn url(&self, endpoint: &Endpoint) -> String {
        endpoint.url(if self.chat { "/chat/completions" } else { "/completions" })
    }

    pub fn body(&self, prompt: &str, tokens: u32) -> String {
        let mut body = json!({"model": self.model, "temperature": self.temperature, "stream": true});
        self.fill(&mut body, prompt, tokens);
        if self.usage {
            body["stream_options"] = json!({"include_usage": true});
        }
        body.to_string()
    }

    fn fill(&self, body: &mut Value, prompt: &str, tokens: u32) {
        match self.chat {
            true => body["messages"] = json!([{"role": "user", "content": prompt}]),
            false => body["prompt"] = prompt.into(),
        }
        body[if self.new_limit { "max_completion_tokens" } else { "max_tokens" }] = tokens.into();
        if self.exact_length {
            body["ignore_eos"] = true.into();
            body["min_tokens"] = tokens.into();
        }
    }

    /// How many tokens the server finds in a prompt, where it says.
    pub fn prompt_tokens(&self, endpoint: &Endpoint, prompt: &str) -> Option<u32> {
        let mut body = json!({"model": self.model});
        self.fill(&mut body, prompt, 1);
        let answer = endpoint.post(&self.url(endpoint), &body).ok()?;
        answer["usage"]["prompt_tokens"].as_u64().map(|tokens| tokens as u32)
    }
}
