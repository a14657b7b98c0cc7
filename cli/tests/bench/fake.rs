//! A server that says what a test wrote down, when it wrote it. It knows as much HTTP as that takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// The prompt with which the bench tries out what a server takes.
pub const TRIAL: &str = "Hello";

/// One step of an answer.
#[derive(Clone)]
pub enum Step {
    Wait(u64),
    /// A server-sent event.
    Event(Value),
    /// Any line, as it is.
    Line(String),
    /// `[DONE]`, and the end of the body.
    Done,
    /// The end of the body without it.
    End,
    /// The connection goes away in the middle of the body.
    Drop,
    /// `[DONE]`, the end of the body, and of the connection: no header said so.
    Close,
}

pub enum Reply {
    Stream(Vec<Step>),
    Refuse(u16, Value),
    /// The connection goes away before there is an answer.
    Hang,
    /// The connection goes away behind the answer, and no header said so.
    Last(Value),
}

/// What came, in the order in which it came: path and body.
type Seen = Arc<Mutex<Vec<(String, Value)>>>;
type Script = dyn Fn(usize, &Value) -> Reply + Send + Sync;

pub struct Fake {
    pub address: SocketAddr,
    seen: Seen,
}

impl Fake {
    /// `script` answers the request with this number (trials are not counted) and body.
    pub fn start(script: impl Fn(usize, &Value) -> Reply + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, script) = (Seen::default(), Arc::new(script) as Arc<Script>);
        let shared = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, script) = (shared.clone(), script.clone());
                thread::spawn(move || serve(stream, &seen, &*script));
            }
        });
        Fake { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Bodies of all requests for an answer, without trials.
    pub fn asked(&self) -> Vec<Value> {
        let seen = self.seen.lock().expect("not poisoned");
        seen.iter().filter(|(path, body)| is_answer(path, body)).map(|(_, body)| body.clone()).collect()
    }
}

fn is_answer(path: &str, body: &Value) -> bool {
    path.ends_with("/completions") && body["prompt"] != TRIAL && body["messages"][0]["content"] != TRIAL
}

fn serve(mut stream: TcpStream, seen: &Seen, script: &Script) {
    stream.set_nodelay(true).expect("a socket");
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    while let Some((path, body)) = read_request(&mut reader) {
        let answer = is_answer(&path, &body);
        let number = {
            let mut seen = seen.lock().expect("not poisoned");
            let number = seen.iter().filter(|(path, body)| is_answer(path, body)).count();
            seen.push((path.clone(), body.clone()));
            number
        };
        let reply = match path.as_str() {
            "/v1/models" => Reply::Refuse(200, json!({"data": [{"id": "fake"}]})),
            // Its tokens are words.
            "/tokenize" => {
                let words = body["content"].as_str().unwrap_or_default().split(' ').count();
                // As some servers do: a connection is good for so many requests, and then it is not.
                Reply::Last(json!({"count": words}))
            }
            // What is refused to requests is refused to trials.
            _ if !answer => match script(usize::MAX, &body) {
                refusal @ Reply::Refuse(400, _) => refusal,
                _ => Reply::Stream(vec![Step::Event(text("hi", Some("length"))), Step::Done]),
            },
            _ => script(number, &body),
        };
        if send(&mut stream, reply).is_err() {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, Value)> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let path = line.split(' ').nth(1)?.to_string();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).unwrap_or_default()))
}

/// An error ends the connection.
fn send(stream: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    let gone = || std::io::Error::other("as the script has it");
    match reply {
        Reply::Hang => Err(gone()),
        Reply::Last(body) => send(stream, Reply::Refuse(200, body)).and(Err(gone())),
        Reply::Refuse(status, body) => {
            let body = body.to_string();
            write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        }
        Reply::Stream(steps) => {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )?;
            let mut chunk = |text: &str| write!(stream, "{:x}\r\n{text}\r\n", text.len());
            for step in steps {
                match step {
                    Step::Wait(ms) => thread::sleep(Duration::from_millis(ms)),
                    Step::Event(event) => chunk(&format!("data: {event}\n\n"))?,
                    Step::Line(line) => chunk(&format!("{line}\n\n"))?,
                    Step::Done => {
                        chunk("data: [DONE]\n\n")?;
                        return write!(stream, "0\r\n\r\n");
                    }
                    Step::Close => {
                        chunk("data: [DONE]\n\n")?;
                        return write!(stream, "0\r\n\r\n").and(Err(gone()));
                    }
                    Step::End => return write!(stream, "0\r\n\r\n"),
                    Step::Drop => return Err(gone()),
                }
            }
            Ok(())
        }
    }
}

/// An event of a completion.
pub fn text(text: &str, finish: Option<&str>) -> Value {
    json!({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})
}

pub fn usage(prompt: u32, completion: u32) -> Value {
    json!({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}})
}

/// A good answer: the first part after `first` ms, each of `more` parts after another `each`, so many tokens in all.
pub fn good(first: u64, more: usize, each: u64, tokens: u32) -> Vec<Step> {
    let mut steps = vec![Step::Wait(first), Step::Event(text("a", None))];
    for part in 0..more {
        let finish = (part + 1 == more).then_some("length");
        steps.extend([Step::Wait(each), Step::Event(text(" b c", finish))]);
    }
    steps.extend([Step::Event(usage(10, tokens)), Step::Done]);
    steps
}
