//! Ctrl-C: while an answer comes it ends the answer, and once more the program; at the prompt it ends the program.

use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use super::client::Said;
use crate::error::CliError;

/// As shells have it.
const INTERRUPTED: i32 = 130;

pub struct Interrupt {
    /// Where the answer that is coming can be told to end.
    answer: Arc<Mutex<Option<Sender<Said>>>>,
}

/// An answer that Ctrl-C ends.
pub struct Answering<'a> {
    interrupt: &'a Interrupt,
    events: Receiver<Said>,
}

impl Interrupt {
    /// Takes the signal over from the system.
    pub fn watch() -> Result<Interrupt, CliError> {
        let answer: Arc<Mutex<Option<Sender<Said>>>> = Arc::default();
        let shared = answer.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(CliError::io("watching for Ctrl-C"))?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                while tokio::signal::ctrl_c().await.is_ok() {
                    let answer = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if answer.is_none_or(|answer| answer.send(Said::Interrupted).is_err()) {
                        std::process::exit(INTERRUPTED);
                    }
                }
            });
        });
        Ok(Interrupt { answer })
    }

    /// The events of an answer, up to its end or to Ctrl-C.
    pub fn answering(&self, (sender, events): (Sender<Said>, Receiver<Said>)) -> Answering<'_> {
        self.set(Some(sender));
        Answering { interrupt: self, events }
    }

    fn set(&self, answer: Option<Sender<Said>>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

impl Iterator for Answering<'_> {
    type Item = Said;

    fn next(&mut self) -> Option<Said> {
        match self.events.recv().ok()? {
            Said::End => None,
            said => Some(said),
        }
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.interrupt.set(None);
    }
}
