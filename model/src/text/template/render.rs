//! One compiled template. In: the variables. Out: text, or the limit that it ran into.

use std::io::{self, Write};
use std::thread;

use minijinja::{Environment, Error, ErrorKind, Output, State, Value};

use super::super::error::TextError;
use super::super::guard::panic_text;
use super::budget::{Budget, Halt, OUTPUT_BYTES_MAX};
use super::rewrite::{TEMPLATE_BYTES_MAX, rewrite};
use super::{filters, show};

/// Instructions that one rendering may run.
pub const FUEL_MAX: u64 = 20_000_000;
/// Nested calls of macros and frames of scopes, as minijinja counts them.
const RECURSION_MAX: usize = 400;
/// Stack of the thread that renders: values may be nested as deep as containers may be built, and drop recursively.
const STACK_BYTES: usize = 256 << 20;

/// A template that is ready to render, and the file that errors name.
#[derive(Debug)]
pub struct Compiled {
    env: Environment<'static>,
    file: String,
}

impl Compiled {
    pub fn new(file: &str, source: &str) -> Result<Compiled, TextError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            let (bytes, limit) = (source.len() as u64, TEMPLATE_BYTES_MAX as u64);
            return Err(TextError::TooLarge { file: file.into(), bytes, limit });
        }
        let syntax = |error: Error| TextError::TemplateSyntax { file: file.into(), detail: located(&error) };
        let mut env = filters::environment();
        env.set_fuel(Some(FUEL_MAX));
        env.set_recursion_limit(RECURSION_MAX);
        env.set_formatter(emit);
        env.set_debug(false);
        // The parser and compiler recurse with the nesting of the source.
        let rewritten = on_large_stack(file, || rewrite(source))?.map_err(syntax)?;
        on_large_stack(file, || env.add_template_owned("chat", rewritten))?.map_err(syntax)?;
        Ok(Compiled { env, file: file.into() })
    }

    pub fn render(&self, variables: impl FnOnce() -> Value + Send) -> Result<String, TextError> {
        let mut sink = Sink { bytes: Vec::new(), full: false };
        let outcome = on_large_stack(&self.file, || -> Result<(), Error> {
            let template = self.env.get_template("chat")?;
            template.render_captured_to(variables(), &mut sink).map(drop)
        })?;
        match outcome {
            // A sink takes whole strings, so that its bytes are valid.
            Ok(()) => Ok(String::from_utf8_lossy(&sink.bytes).into_owned()),
            Err(_) if sink.full => {
                Err(TextError::TemplateLimit { file: self.file.clone(), halt: Halt::Output })
            }
            Err(error) => Err(self.failure(&error)),
        }
    }

    fn failure(&self, error: &Error) -> TextError {
        let file = self.file.clone();
        if let Some(halt) = find_halt(error) {
            return match halt {
                Halt::Raised(message) => TextError::TemplateRaised { file, message: message.clone() },
                halt => TextError::TemplateLimit { file, halt: halt.clone() },
            };
        }
        if any_cause(error, |cause| cause.kind() == ErrorKind::OutOfFuel) {
            return TextError::TemplateFuel { file };
        }
        if any_cause(error, |cause| cause.detail().is_some_and(|detail| detail.contains("recursion limit"))) {
            return TextError::TemplateRecursion { file };
        }
        TextError::TemplateFailed { file, detail: located(error) }
    }
}

/// Runs `work` on a thread with a stack that no template can overflow. A panic there is a fault of ours.
fn on_large_stack<T: Send>(file: &str, work: impl FnOnce() -> T + Send) -> Result<T, TextError> {
    let crashed = |detail: String| TextError::TemplateCrashed { file: file.to_owned(), detail };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("chat-template".into()).stack_size(STACK_BYTES);
        let running =
            thread.spawn_scoped(scope, work).map_err(|error| crashed(format!("no thread: {error}")))?;
        running.join().map_err(|payload| crashed(panic_text(&*payload)))
    })
}

/// Puts a value out as Python prints it.
fn emit(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let budget = Budget::of(state);
    match value.as_str() {
        Some(text) => {
            budget.bytes(text.len())?;
            out.write_str(text)?;
        }
        None => out.write_str(&show::text(value, budget)?)?,
    }
    Ok(())
}

/// The message, and the line of the template where there is one.
fn located(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), show::tame);
    match error.line() {
        Some(line) => format!("{detail} (line {line})"),
        None => detail,
    }
}

fn find_halt(error: &Error) -> Option<&Halt> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(halt) = current.downcast_ref::<Halt>() {
            return Some(halt);
        }
        cause = current.source();
    }
    None
}

fn any_cause(error: &Error, test: impl Fn(&Error) -> bool) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if current.downcast_ref::<Error>().is_some_and(&test) {
            return true;
        }
        cause = current.source();
    }
    false
}

/// Takes what is put out, up to the limit.
struct Sink {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Sink {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + text.len() > OUTPUT_BYTES_MAX {
            self.full = true;
            return Err(io::Error::other(Halt::Output.to_string()));
        }
        self.bytes.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
