//! `gaterail chat`: a conversation in the terminal, with a server that runs already or one of its own.
//!
//! | file | |
//! |---|---|
//! | [`client`] | one turn over HTTP, as a stream of events |
//! | [`interrupt`] | Ctrl-C: ends the answer, twice the program |

mod client;
mod interrupt;

use std::io::{BufRead, IsTerminal, stdin};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use client::{Client, Said};
use interrupt::Interrupt;

use crate::error::CliError;
use crate::serve::{self, Serving};
use crate::terminal;

/// Where `gaterail serve` listens.
const DEFAULT_URL: &str = "http://127.0.0.1:8000/v1";
const LINE_BYTES_MAX: usize = 1 << 20;

/// Talk with a model in the terminal
///
/// With --url it talks to that server; with MODEL it starts one of its own for as long as the conversation lasts. With
/// neither it takes the server at http://127.0.0.1:8000, and where there is none it starts the demo model. Ctrl-C ends the
/// answer, twice the program; /reset forgets the conversation, /quit ends it.
#[derive(Args)]
pub struct ChatArgs {
    /// A model to start: a folder, a GGUF file, or ORG/NAME that `gaterail pull` has fetched
    #[arg(conflicts_with = "url")]
    model: Option<String>,

    /// A server that runs: its address with /v1. Any that speaks OpenAI's interface will do
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The key that the server wants
    #[arg(long, value_name = "KEY", env = "GATERAIL_CHAT_KEY", hide_env_values = true)]
    key: Option<String>,

    /// The model to ask for, where the server has several
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// A system message before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Most tokens of an answer
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<u32>,

    /// 0 is greedy; by default the server decides
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
}

pub fn run(args: &ChatArgs) -> Result<(), CliError> {
    let (client, own) = connect(args)?;
    let result = converse(args, &client);
    if let Some(own) = own {
        own.stop(Duration::ZERO, Duration::from_secs(1));
    }
    result
}

/// The server to talk to, and the one that was started for that.
fn connect(args: &ChatArgs) -> Result<(Client, Option<Serving>), CliError> {
    let given = args.url.as_deref();
    if args.model.is_none() {
        let client = Client::new(given.unwrap_or(DEFAULT_URL), args.key.clone(), args.name.clone())?;
        match client.model() {
            Ok(name) => return Ok((client.with_name(name), None)),
            Err(error) if given.is_some() || !error.nobody_listens => {
                return Err(CliError::Refused(error.text));
            }
            Err(_) => {}
        }
    }
    let (serving, url, key) = serve::start_own(args.model.as_deref())?;
    let client = Client::new(&url, Some(key), None)?;
    let name = client.model().map_err(|error| CliError::Refused(error.text))?;
    Ok((client.with_name(name), Some(serving)))
}

fn converse(args: &ChatArgs, client: &Client) -> Result<(), CliError> {
    let interrupt = Interrupt::watch()?;
    let begin: Vec<Value> =
        args.system.iter().map(|text| json!({"role": "system", "content": text})).collect();
    let mut messages = begin.clone();
    terminal::note(&format!("{} · Ctrl-D ends", terminal::visible(client.name())));
    while let Some(line) = read_line()? {
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/reset" => messages.clone_from(&begin),
            _ => {
                messages.push(json!({"role": "user", "content": line}));
                match turn(args, client, &messages, &interrupt)? {
                    Some(answer) => messages.push(json!({"role": "assistant", "content": answer})),
                    // What was not answered is not part of the conversation.
                    None => drop(messages.pop()),
                }
            }
        }
    }
    Ok(())
}

fn read_line() -> Result<Option<String>, CliError> {
    if stdin().is_terminal() {
        terminal::print("> ")?;
    }
    let mut line = String::new();
    let read = stdin().lock().read_line(&mut line).map_err(CliError::io("reading standard input"))?;
    if line.len() > LINE_BYTES_MAX {
        return Err(CliError::Usage(format!("a line has more than {LINE_BYTES_MAX} bytes")));
    }
    Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_string()))
}

/// One answer, shown as it comes; `None` where there was none.
fn turn(
    args: &ChatArgs,
    client: &Client,
    messages: &[Value],
    interrupt: &Interrupt,
) -> Result<Option<String>, CliError> {
    let mut body = json!({
        "model": client.name(), "messages": messages, "stream": true, "stream_options": {"include_usage": true},
    });
    if let Some(max) = args.max_tokens {
        body["max_tokens"] = max.into();
    }
    if let Some(temperature) = args.temperature {
        body["temperature"] = temperature.into();
    }
    let started = Instant::now();
    let (mut answer, mut first, mut tokens) = (String::new(), None, None);
    let events = interrupt.answering(client.ask(body));
    for said in events {
        match said {
            Said::Text(text) => {
                first.get_or_insert_with(|| started.elapsed());
                terminal::print(&terminal::visible(&text))?;
                answer += &text;
            }
            Said::Tokens(count) => tokens = Some(count),
            Said::Error(text) => {
                terminal::note(&format!("\ngaterail: {}", terminal::visible(&text)));
                return Ok(None);
            }
            Said::Interrupted => {
                terminal::print(" …")?;
                break;
            }
            Said::End => break,
        }
    }
    terminal::print("\n")?;
    if let Some(first) = first {
        terminal::note(&figures(first, started.elapsed(), tokens));
    }
    Ok(Some(answer))
}

/// TTFT as a person sees it, and the rate behind the first token.
fn figures(first: Duration, whole: Duration, tokens: Option<u64>) -> String {
    let ms = first.as_secs_f64() * 1e3;
    match tokens {
        Some(tokens @ 2..) => {
            let rate = (tokens - 1) as f64 / (whole - first).as_secs_f64().max(1e-9);
            format!("[{tokens} tokens; the first after {ms:.0} ms, then {rate:.1} tokens/s]")
        }
        _ => format!("[the first token after {ms:.0} ms]"),
    }
}
