//! The worker processes of this machine: started, watched, started again, ended.
//!
//! They end with this process, however it ends. One thread starts them and lives as long as they do: the system takes the end
//! of the thread that started a process for its parent's.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use gaterail_router::notes::Notes;
use rustix::process::{Pid, Signal, kill_process};

use super::share::Share;
use crate::error::CliError;
use crate::worker::parent;
use crate::{itself, terminal};

/// Processes are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Before a worker is started again: doubled with every end that comes early, up to the larger one.
const RESTART: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// An end after less than this comes early.
const EARLY: Duration = Duration::from_secs(2);
/// So many early ends of one worker, one after another, are no accident.
const EARLY_ENDS_MAX: u32 = 5;
/// A worker that runs and is with its server no more, or never was: after so long it is killed, and started again.
const MISSING_MAX: Duration = Duration::from_secs(20);
/// Who is there has to be known so well for that.
const KNOWN_MAX: Duration = Duration::from_secs(2);
/// Workers have so long to end by themselves.
const STOP_MAX: Duration = Duration::from_secs(3);
/// How a worker ends a line about a server that it has lost.
const AGAIN: &str = "it is tried again";
/// A longer line of a worker's log is cut.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// How workers are started.
pub struct Crew {
    /// The port that they join.
    pub join: SocketAddr,
    pub token: String,
    /// More of their command line, the same for all.
    pub flags: Vec<String>,
    pub shares: Vec<Share>,
    /// Where the workers' words go, and the supervisor's.
    pub notes: Notes,
    /// The server ends: that its workers lose it, and would come again, is no news.
    pub quiet: Arc<AtomicBool>,
}

/// Ends them when it is dropped.
pub struct Supervisor {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
    present: Arc<Mutex<Present>>,
}

/// Which processes are workers of the server, as far as it has told.
#[derive(Default)]
pub struct Present {
    /// When it told last.
    told: Option<Instant>,
    /// By process id, when one was there last.
    seen: HashMap<u32, Instant>,
}

impl Present {
    /// Processes that are there now.
    pub fn tell(&mut self, pids: impl Iterator<Item = u32>) {
        let now = Instant::now();
        self.told = Some(now);
        self.seen.retain(|_, seen| now.duration_since(*seen) < 2 * MISSING_MAX);
        self.seen.extend(pids.map(|pid| (pid, now)));
    }

    /// Whether a process that runs since `started` has not been there for too long.
    fn is_missing(&self, pid: u32, started: Instant) -> bool {
        let known = self.told.is_some_and(|told| told.elapsed() < KNOWN_MAX);
        known && self.seen.get(&pid).copied().unwrap_or(started).elapsed() > MISSING_MAX
    }
}

impl Supervisor {
    pub fn start(crew: Crew) -> Result<Supervisor, CliError> {
        let (stop, stopped) = channel();
        let trouble = Arc::new(Mutex::new(None));
        let slots = (0..crew.shares.len()).map(Slot::new).collect();
        let present = Arc::new(Mutex::new(Present::default()));
        let watch = Watch { crew, slots, trouble: trouble.clone(), present: present.clone() };
        let thread = std::thread::Builder::new().name("worker-supervisor".to_string());
        let thread = thread.spawn(move || watch.run(&stopped)).map_err(CliError::io("starting a thread"))?;
        Ok(Supervisor { stop: Some(stop), thread: Some(thread), trouble, present })
    }

    /// Where it is told which processes are there.
    pub fn present(&self) -> Arc<Mutex<Present>> {
        self.present.clone()
    }

    /// Why workers will hardly ever be there, if that is so.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Watch {
    crew: Crew,
    slots: Vec<Slot>,
    trouble: Arc<Mutex<Option<String>>>,
    present: Arc<Mutex<Present>>,
}

/// A worker's place.
struct Slot {
    name: String,
    running: Option<(Child, Instant)>,
    /// When it is started again.
    due: Instant,
    wait: Duration,
    early_ends: u32,
}

impl Slot {
    fn new(index: usize) -> Slot {
        let (name, due) = (format!("worker-{index}"), Instant::now());
        Slot { name, running: None, due, wait: RESTART.0, early_ends: 0 }
    }

    /// How its process ended, if it did.
    fn ended(&mut self) -> Option<(ExitStatus, Duration)> {
        let (child, since) = self.running.as_mut()?;
        let ended = child.try_wait().ok()??;
        let lived = since.elapsed();
        self.running = None;
        Some((ended, lived))
    }
}

impl Watch {
    fn run(mut self, stopped: &Receiver<()>) {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(LOOK_EVERY) {
            for index in 0..self.slots.len() {
                self.look(index);
            }
        }
        self.end();
    }

    fn look(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        if let Some((status, lived)) = slot.ended() {
            let early = lived < EARLY;
            slot.early_ends = if early { slot.early_ends + 1 } else { 0 };
            slot.wait = if early { (slot.wait * 2).min(RESTART.1) } else { RESTART.0 };
            slot.due = Instant::now() + slot.wait;
            let Slot { name, wait, .. } = slot;
            self.crew.notes.tell(format!(
                "gaterail: {name} ended ({status}) after {:.1} s; it is started again in {:.1} s",
                lived.as_secs_f64(),
                wait.as_secs_f64()
            ));
            if slot.early_ends == EARLY_ENDS_MAX {
                let why = format!(
                    "{name} ended {EARLY_ENDS_MAX} times soon after its start; its own words are above"
                );
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            }
        }
        let slot = &mut self.slots[index];
        if let Some((child, started)) = &mut slot.running
            && self.present.lock().unwrap_or_else(PoisonError::into_inner).is_missing(child.id(), *started)
        {
            let name = &slot.name;
            self.crew.notes.tell(format!(
                "gaterail: {name} runs, and has not been there for {MISSING_MAX:?}: it is killed"
            ));
            let _ = child.kill();
        }
        if slot.running.is_none() && slot.due <= Instant::now() {
            self.begin(index);
        }
    }

    fn begin(&mut self, index: usize) {
        let (name, started) = (self.slots[index].name.clone(), Instant::now());
        let slot = &mut self.slots[index];
        match command(&self.crew, index, &name).spawn() {
            Ok(mut child) => {
                if let Some(stderr) = child.stderr.take() {
                    let reader = std::thread::Builder::new().name(format!("{name}-log"));
                    let (notes, quiet) = (self.crew.notes.clone(), self.crew.quiet.clone());
                    // Without one the worker's words are lost, and nothing else.
                    let _ = reader.spawn(move || pass_on(&name, stderr, &notes, &quiet));
                }
                slot.running = Some((child, started));
            }
            Err(error) => {
                slot.wait = (slot.wait * 2).min(RESTART.1);
                slot.due = started + slot.wait;
                let why = format!("{name} cannot be started: {error}");
                self.crew.notes.tell(format!("gaterail: {why}"));
                self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            }
        }
    }

    /// Asks them to go, and ends those who do not.
    fn end(&mut self) {
        let running = self.slots.iter_mut().filter_map(|slot| slot.running.as_mut());
        let mut children: Vec<&mut Child> = running.map(|(child, _)| child).collect();
        for child in &mut children {
            if let Some(pid) = Pid::from_raw(child.id() as i32) {
                // It may have ended, and is not waited for yet, so that its number is no other's.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let deadline = Instant::now() + STOP_MAX;
        let is_running = |child: &mut &mut Child| matches!(child.try_wait(), Ok(None));
        children.retain_mut(is_running);
        while !children.is_empty() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
            children.retain_mut(is_running);
        }
        for child in children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn command(crew: &Crew, index: usize, name: &str) -> Command {
    let Share { cores, threads, memory, card } = &crew.shares[index];
    let place = match card {
        // What is free on it is known best when the worker starts, and so is who else computes there.
        Some(ordinal) => vec!["--device".to_string(), format!("cuda:{ordinal}")],
        None => {
            let (threads, memory) = (threads.to_string(), memory.to_string());
            ["--device", "cpu", "--threads", &threads, "--memory", &memory].map(str::to_string).to_vec()
        }
    };
    let mut command = Command::new(itself::program());
    // What the server was told is not meant for its workers.
    let own = std::env::vars_os().map(|(name, _)| name);
    for variable in own.filter(|name| name.to_str().is_some_and(|name| name.starts_with("GATERAIL_"))) {
        if variable != "GATERAIL_CACHE" {
            command.env_remove(variable);
        }
    }
    command
        .args(["worker", "--join", &crew.join.to_string(), "--name", name])
        .args(place)
        .args(cores.iter().flat_map(|cores| ["--cores".to_string(), cores.to_string()]))
        .args(&crew.flags)
        // Others can read a command line.
        .env("GATERAIL_TOKEN", &crew.token)
        .env(parent::VARIABLE, std::process::id().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // Ctrl-C is for the server, which ends its workers when it has finished its answers.
        .process_group(0);
    command
}

/// A worker's lines with its name before them. They are read even where nobody reads ours: a worker that writes must not
/// wait for that.
fn pass_on(name: &str, stderr: impl Read, notes: &Notes, quiet: &AtomicBool) {
    let mut lines = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(1..) => {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end();
                let text = text.strip_prefix("gaterail: ").unwrap_or(text);
                if text.ends_with(AGAIN) && quiet.load(Ordering::Relaxed) {
                    continue;
                }
                notes.tell(terminal::visible(&format!("{name}: {text}")));
            }
            Ok(0) | Err(_) => return,
        }
    }
}
