//! Which template a model folder holds, and the variables that a conversation gives it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::Value as Variable;
use minijinja::value::Serde;
use serde_json::{Map, Value};

use super::super::error::TextError;
use super::super::files;
use super::filters::NOW;
use super::render::Compiled;

/// Where transformers keeps templates beside the default one.
const MORE_TEMPLATES: &str = "additional_chat_templates";
/// Templates that a model may have.
const TEMPLATES_MAX: usize = 16;
/// Marks the end of the message that is to be continued (the same text as in transformers).
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// Names under which the reasoning of a message is passed; the first is the standard one.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Special tokens that a template sees under these names.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The chat template of a model.
#[derive(Debug)]
pub struct ChatTemplate {
    /// By name; `default` unless the model names several.
    templates: BTreeMap<String, (Compiled, String)>,
    /// `bos_token` and its like.
    special: Map<String, Value>,
    file: String,
}

/// One conversation to render.
#[derive(Debug, Clone, Default)]
pub struct ChatInput {
    /// An array of messages: role, content (a string or a list of parts), `tool_calls` and whatever else they hold.
    pub messages: Value,
    /// Tools as JSON schemas, an array.
    pub tools: Option<Value>,
    /// Documents to draw on, an array.
    pub documents: Option<Value>,
    /// Ends the prompt where the assistant begins to speak.
    pub add_generation_prompt: bool,
    /// Ends the prompt inside the last message, so that the model goes on with it.
    pub continue_final_message: bool,
    /// More variables (`chat_template_kwargs`), such as `enable_thinking`; they win over special tokens.
    pub extra: Map<String, Value>,
    /// What `strftime_now` shows (UTC); the system's clock when absent.
    pub now: Option<SystemTime>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template` of `tokenizer_config.json`; `None` when there is neither.
    ///
    /// Fails on a file that cannot be read or a template that does not parse.
    pub fn from_folder(folder: &Path) -> Result<Option<ChatTemplate>, TextError> {
        let config_path = folder.join("tokenizer_config.json");
        let config = files::json_object(&config_path)?.unwrap_or_default();
        let mut sources = BTreeMap::new();
        let jinja = folder.join("chat_template.jinja");
        if let Some(text) = files::text(&jinja)? {
            sources.insert("default".to_owned(), text);
            more_templates(folder, &mut sources)?;
            return ChatTemplate::from_sources(
                &jinja.display().to_string(),
                &sources,
                special_tokens(folder, &config)?,
            )
            .map(Some);
        }
        let file = config_path.display().to_string();
        config_templates(config.get("chat_template"), &file, &mut sources)?;
        if sources.is_empty() {
            return Ok(None);
        }
        ChatTemplate::from_sources(&file, &sources, special_tokens(folder, &config)?).map(Some)
    }

    /// A template from its text, with the special tokens that it may use; errors call it `file`.
    pub fn from_source(
        file: &str,
        source: &str,
        special: Map<String, Value>,
    ) -> Result<ChatTemplate, TextError> {
        let sources = BTreeMap::from([("default".to_owned(), source.to_owned())]);
        ChatTemplate::from_sources(file, &sources, special)
    }

    /// Templates by name; one of them should be called `default`.
    pub(in crate::text) fn from_sources(
        file: &str,
        sources: &BTreeMap<String, String>,
        special: Map<String, Value>,
    ) -> Result<ChatTemplate, TextError> {
        if sources.len() > TEMPLATES_MAX {
            let detail = format!("{} chat templates, more than {TEMPLATES_MAX}", sources.len());
            return Err(TextError::Invalid { file: file.into(), detail });
        }
        let compile = |(name, source): (&String, &String)| {
            Ok((name.clone(), (Compiled::new(file, source)?, source.clone())))
        };
        let templates = sources.iter().map(compile).collect::<Result<_, TextError>>()?;
        Ok(ChatTemplate { templates, special, file: file.into() })
    }

    /// The prompt for `input`: what transformers' `apply_chat_template(tokenize=False)` gives.
    pub fn render(&self, input: &ChatInput) -> Result<String, TextError> {
        let (compiled, source) = self.choose(input.tools.is_some())?;
        let mut messages = checked_messages(&input.messages)?;
        messages.iter_mut().for_each(alias_reasoning);
        let last = match input.continue_final_message {
            true => Some(mark_final_message(&mut messages, source)?),
            false => None,
        };
        let rendered = compiled.render(|| self.variables(input, messages))?;
        match last {
            Some(last) => cut_at_mark(rendered, &last),
            None => Ok(rendered),
        }
    }

    fn choose(&self, with_tools: bool) -> Result<&(Compiled, String), TextError> {
        let tool_use = self.templates.get("tool_use").filter(|_| with_tools);
        tool_use.or_else(|| self.templates.get("default")).ok_or_else(|| TextError::NoDefaultTemplate {
            file: self.file.clone(),
            names: self.templates.keys().cloned().collect(),
        })
    }

    fn variables(&self, input: &ChatInput, messages: Vec<Value>) -> Variable {
        let now = input.now.unwrap_or_else(SystemTime::now).duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut all = self.special.clone();
        all.extend(input.extra.clone());
        all.insert("messages".into(), Value::Array(messages));
        all.insert("tools".into(), input.tools.clone().unwrap_or_default());
        all.insert("documents".into(), input.documents.clone().unwrap_or_default());
        all.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        all.insert(NOW.into(), now.as_secs().into());
        Variable::from(Serde(&all))
    }
}

fn more_templates(folder: &Path, sources: &mut BTreeMap<String, String>) -> Result<(), TextError> {
    let Ok(entries) = folder.join(MORE_TEMPLATES).read_dir() else { return Ok(()) };
    for path in entries.flatten().take(TEMPLATES_MAX).map(|entry| entry.path()) {
        let name = path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
        if let (Some("jinja"), Some(name)) = (path.extension().and_then(|end| end.to_str()), name) {
            sources.insert(name, files::text(&path)?.unwrap_or_default());
        }
    }
    Ok(())
}

/// `chat_template` of `tokenizer_config.json`: one text, or a list of `{name, template}`.
fn config_templates(
    config: Option<&Value>,
    file: &str,
    sources: &mut BTreeMap<String, String>,
) -> Result<(), TextError> {
    match config {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => {
            sources.insert("default".into(), text.clone());
        }
        Some(Value::Array(list)) => {
            for entry in list {
                let (Some(name), Some(text)) = (entry["name"].as_str(), entry["template"].as_str()) else {
                    let detail = "an entry of chat_template has no name or no template".into();
                    return Err(TextError::Invalid { file: file.into(), detail });
                };
                sources.insert(name.into(), text.into());
            }
        }
        Some(_) => {
            let detail = "chat_template is neither a string nor a list".into();
            return Err(TextError::Invalid { file: file.into(), detail });
        }
    }
    Ok(())
}

/// The special tokens as strings; `special_tokens_map.json` fills in what `tokenizer_config.json` leaves out.
fn special_tokens(folder: &Path, config: &Map<String, Value>) -> Result<Map<String, Value>, TextError> {
    let map = files::json_object(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
    let find = |name: &str| files::token_text(config.get(name)).or_else(|| files::token_text(map.get(name)));
    Ok(SPECIAL_TOKENS.iter().filter_map(|name| Some(((*name).to_owned(), find(name)?.into()))).collect())
}

fn checked_messages(messages: &Value) -> Result<Vec<Value>, TextError> {
    let refuse = |detail: &str| Err(TextError::Conversation { detail: detail.into() });
    match messages {
        Value::Array(list) if list.iter().all(Value::is_object) => Ok(list.clone()),
        Value::Array(_) => refuse("a message is not an object"),
        _ => refuse("the messages are not an array"),
    }
}

/// Passes the reasoning of a message under `reasoning_content` and, for gpt-oss, `thinking`.
fn alias_reasoning(message: &mut Value) {
    let Value::Object(fields) = message else { return };
    let given = REASONING.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null()));
    let Some(reasoning) = given.cloned() else { return };
    let mut aliased = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    aliased.append(fields);
    aliased.insert("reasoning_content".into(), reasoning);
    *fields = aliased;
}

/// Marks the end of the last message's text and returns that text.
fn mark_final_message(messages: &mut [Value], source: &str) -> Result<String, TextError> {
    let refuse =
        |detail: &str| TextError::Conversation { detail: format!("continue_final_message: {detail}") };
    let last = messages.last_mut().ok_or_else(|| refuse("there is no message"))?;
    if !source.contains("content") {
        return Err(refuse("the chat template does not use content"));
    }
    let text = match last.get_mut("content") {
        Some(Value::Array(parts)) => {
            let part = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
            part.ok_or_else(|| refuse("the final message has no text"))?
        }
        Some(Value::Null) | None => return Err(refuse("the final message has no content")),
        Some(content) => content,
    };
    let Value::String(text) = text else { return Err(refuse("the final message is not text")) };
    let original = text.clone();
    text.push_str(CONTINUE_TAG);
    Ok(original)
}

/// Ends `rendered` where the last message ended, whether or not the template trims messages.
fn cut_at_mark(mut rendered: String, last: &str) -> Result<String, TextError> {
    let mark = CONTINUE_TAG.trim_end();
    let Some(at) = rendered.rfind(mark).filter(|_| rendered.contains(last.trim())) else {
        let detail = "continue_final_message: the chat template drops part of the final message".into();
        return Err(TextError::Conversation { detail });
    };
    let whole = rendered[at..].starts_with(CONTINUE_TAG);
    rendered.truncate(at);
    if !whole {
        rendered.truncate(rendered.trim_end().len());
    }
    Ok(rendered)
}
