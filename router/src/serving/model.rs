//! The model as clients see it: its names, how text becomes tokens, how it samples when nobody says.

use std::sync::Arc;

use gaterail_model::text::{ChatInput, ChatTemplate, TextError, Tokenizer};
use tokio::sync::Semaphore;

use crate::engine::Engine;
use crate::openai::{ApiError, ErrorKind, ServerDefaults};

/// What `/v1/models` and `ModelInfo` say beside names and context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelAbout {
    pub parameters: u64,
    pub active_parameters: u64,
    /// Seconds since 1970.
    pub created: u64,
}

pub struct ServedParts {
    pub engine: Engine,
    /// At least one; the first is the model's own.
    pub names: Vec<String>,
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub template: Option<ChatTemplate>,
    pub defaults: ServerDefaults,
    pub about: ModelAbout,
    /// Texts that are tokenized or rendered at once.
    pub text_jobs_max: usize,
}

pub struct Served {
    pub engine: Engine,
    pub names: Vec<String>,
    pub tokenizer: Option<Arc<Tokenizer>>,
    template: Option<Arc<ChatTemplate>>,
    pub defaults: ServerDefaults,
    pub about: ModelAbout,
    token_bytes_max: Option<usize>,
    text_jobs: Arc<Semaphore>,
}

impl Served {
    pub fn new(parts: ServedParts) -> Served {
        assert!(!parts.names.is_empty(), "a model is served under a name");
        Served {
            token_bytes_max: parts.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_bytes_max()),
            engine: parts.engine,
            names: parts.names,
            tokenizer: parts.tokenizer,
            template: parts.template.map(Arc::new),
            defaults: parts.defaults,
            about: parts.about,
            text_jobs: Arc::new(Semaphore::new(parts.text_jobs_max.max(1))),
        }
    }

    pub fn name(&self) -> &str {
        &self.names[0]
    }

    pub fn context(&self) -> usize {
        self.engine.model().context
    }

    /// The name to answer with. A request without one means the model that is there.
    pub fn check_name<'a>(&'a self, asked: Option<&'a str>) -> Result<&'a str, ApiError> {
        let Some(asked) = asked else { return Ok(self.name()) };
        match self.names.iter().find(|name| *name == asked) {
            Some(name) => Ok(name),
            None => {
                let served = self.names.join(", ");
                let message = format!("the model {asked:?} does not exist here; this server has {served}");
                let error = ApiError::new(ErrorKind::NoSuchModel, message);
                Err(ApiError { param: Some("model".into()), ..error })
            }
        }
    }

    /// Tokens of a text. Too long a text is refused before any work.
    pub async fn encode(&self, param: &str, text: String, add_special: bool) -> Result<Vec<u32>, ApiError> {
        self.check_bytes(param, text.len())?;
        let tokenizer = self.tokenizer()?;
        self.text_job(param, move || tokenizer.encode(&text, add_special)).await
    }

    /// Tokens of a conversation, through the model's chat template.
    pub async fn encode_chat(&self, input: ChatInput) -> Result<Vec<u32>, ApiError> {
        const PARAM: &str = "messages";
        let Some(template) = self.template.clone() else {
            let message = "the model has no chat template; use /v1/completions";
            return Err(ApiError::invalid(PARAM, message));
        };
        let texts = input.messages.as_array().into_iter().flatten();
        let bytes = texts.filter_map(|message| message["content"].as_str()).map(str::len).sum();
        self.check_bytes(PARAM, bytes)?;
        let tokenizer = self.tokenizer()?;
        // What else a message has (reasoning, a name, …) a template may show or leave out: only its text tells.
        let text = self.text_job(PARAM, move || template.render(&input)).await?;
        self.check_bytes(PARAM, text.len())?;
        self.text_job(PARAM, move || tokenizer.encode(&text, false)).await
    }

    pub async fn decode(
        &self,
        param: &str,
        tokens: Vec<u32>,
        skip_special: bool,
    ) -> Result<String, ApiError> {
        let tokenizer = self.tokenizer()?;
        self.text_job(param, move || tokenizer.decode(&tokens, skip_special)).await
    }

    /// Refuses tokens that cannot fit, before any work on them.
    pub fn check_length(&self, param: &str, tokens: usize) -> Result<(), ApiError> {
        let context = self.context();
        if tokens < context {
            return Ok(());
        }
        let message = format!(
            "the model's context is {context} tokens, but the prompt has {tokens}, which leaves no room for an answer"
        );
        let error = ApiError::new(ErrorKind::ContextLength, message);
        Err(ApiError { param: Some(param.into()), ..error })
    }

    /// Refuses a text that cannot fit, without tokenizing it.
    fn check_bytes(&self, param: &str, bytes: usize) -> Result<(), ApiError> {
        let Some(longest) = self.token_bytes_max else { return Ok(()) };
        let (least, context) = (bytes.div_ceil(longest.max(1)), self.context());
        if least < context {
            return Ok(());
        }
        let message = format!(
            "the model's context is {context} tokens, but the prompt has {bytes} bytes, which are at least {least} tokens"
        );
        let error = ApiError::new(ErrorKind::ContextLength, message);
        Err(ApiError { param: Some(param.into()), ..error })
    }

    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>, ApiError> {
        let refuse = || ApiError::invalid("prompt", "the model has no tokenizer; send token ids");
        self.tokenizer.clone().ok_or_else(refuse)
    }

    /// Work on text, on a thread where it holds up nobody else's events.
    async fn text_job<T: Send + 'static>(
        &self,
        param: &str,
        job: impl FnOnce() -> Result<T, TextError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let stopped = |_| ApiError::internal("the server is stopping");
        let permit = self.text_jobs.clone().acquire_owned().await.map_err(stopped)?;
        let done = tokio::task::spawn_blocking(move || {
            let result = job();
            drop(permit);
            result
        });
        match done.await {
            Ok(result) => result.map_err(|error| text_error(param, &error)),
            Err(error) => Err(ApiError::internal(format!("reading the text failed: {error}"))),
        }
    }
}

/// Which errors of text are the request's fault.
fn text_error(param: &str, error: &TextError) -> ApiError {
    match error {
        TextError::TextTooLong { .. }
        | TextError::TemplateRaised { .. }
        | TextError::TemplateFuel { .. }
        | TextError::TemplateLimit { .. }
        | TextError::TemplateRecursion { .. }
        | TextError::TemplateFailed { .. }
        | TextError::Conversation { .. } => ApiError::invalid(param, error.to_string()),
        other => ApiError::internal(other.to_string()),
    }
}
