//! Jobs, each in a process of its own, and the report that grows with them.
//!
//! A child prints what it sees and writes its part of the report to a file, again with every line; the parent takes what
//! is there when the child ends, whichever way it does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use gaterail_kernels::cuda::CudaDevice;
use gaterail_shim::Shim;
use serde_json::{Value, json};

use crate::{Options, checks, speed};

/// All jobs, one after the other; whether all is well.
pub fn all(options: &Options) -> Result<bool, String> {
    let started = Instant::now();
    let mut report = Report::new(options);
    let device = one("device", options, limit_of("device", options));
    if device["ok"] != true {
        return Err(device["detail"].as_str().unwrap_or("the device cannot be opened").to_string());
    }
    report.take_device(&device)?;
    let checks = checks::NAMES.iter().filter(|_| options.checks).copied();
    let shapes = speed::shapes(options.shim).iter().filter(|_| options.speed).map(|shape| shape.name);
    for name in checks.chain(shapes) {
        let left = Duration::from_secs(options.budget_s).saturating_sub(started.elapsed());
        let part = match left.is_zero() {
            true => json!({ "name": name, "ok": false, "detail": "not run: the budget is spent" }),
            false => one(name, options, left.min(limit_of(name, options))),
        };
        if part["ok"] != true {
            println!("{name:28} FAILED: {}", part["detail"].as_str().unwrap_or("no report"));
        }
        report.take(name, part)?;
    }
    println!("{}", if report.well { "all well" } else { "FAILED: see above" });
    Ok(report.well)
}

/// How long a job may take; one that is made to hang need not be waited for.
fn limit_of(name: &str, options: &Options) -> Duration {
    let hangs = options.broken.as_ref().is_some_and(|(broken, how)| broken == name && how == "hang");
    Duration::from_secs(if hangs { 1 } else { options.limit_s })
}

/// One job's part of the report.
fn one(name: &str, options: &Options, limit: Duration) -> Value {
    let mut part = json!({ "name": name });
    if options.here {
        work(name, options, &mut part, None);
        return part;
    }
    let file = std::env::temp_dir().join(format!("gaterail-gpu-check-{}.json", std::process::id()));
    let _ = std::fs::remove_file(&file);
    let ended = spawn(name, options, &file).and_then(|child| wait(child, limit));
    // A child that was stopped in the middle of writing leaves no part: renaming is the last step.
    if let Some(written) = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
        part = written;
    }
    let _ = std::fs::remove_file(&file);
    let fault = match ended {
        Ok(Some(status)) if status.success() => None,
        Ok(Some(status)) => Some(format!("ended with {status}")),
        Ok(None) => Some(format!("still ran after {} s", limit.as_secs())),
        Err(error) => Some(error),
    };
    if let Some(fault) = fault {
        part["ok"] = false.into();
        if part["detail"].is_null() {
            part["detail"] = fault.into();
        }
    }
    part
}

fn spawn(name: &str, options: &Options, file: &Path) -> Result<std::process::Child, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.args(["--job", name, "--device", &options.ordinal.to_string(), "--json"]).arg(file);
    command.args(options.shim.then_some("--shim"));
    command.args(options.few.then_some("--few"));
    if let Some((broken, how)) = &options.broken {
        command.args(["--break", broken, how]);
    }
    command.spawn().map_err(|error| format!("no process for {name}: {error}"))
}

/// How the child ended; none if it had to be stopped.
fn wait(mut child: std::process::Child, limit: Duration) -> Result<Option<ExitStatus>, String> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
            return Ok(Some(status));
        }
        if started.elapsed() >= limit {
            // It is our own child and not waited for yet. One that a driver holds is left behind.
            let _ = child.kill();
            std::thread::sleep(Duration::from_millis(200));
            let _ = child.try_wait();
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A child: does one job, and writes its part.
pub fn child(name: &str, options: &Options) -> Result<bool, String> {
    let mut part = json!({ "name": name });
    let file = options.json.as_deref().map(Path::new);
    work(name, options, &mut part, file);
    write(file, &part)?;
    Ok(part["ok"] == true)
}

/// Does a job; what went wrong is in its part.
fn work(name: &str, options: &Options, part: &mut Value, file: Option<&Path>) {
    let said = Arc::new(Mutex::new(String::new()));
    let hear = said.clone();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("{panic}");
        if let Ok(mut said) = hear.lock() {
            *said = panic.to_string();
        }
    }));
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| step(name, options, part, file)));
    let _ = std::panic::take_hook();
    let detail = match outcome {
        Ok(Ok(well)) => {
            part["ok"] = well.into();
            (!well).then(|| "differs from the CPU".to_string())
        }
        Ok(Err(error)) => Some(error),
        Err(_) => said.lock().ok().map(|said| said.clone()),
    };
    part["seconds"] = started.elapsed().as_secs_f64().into();
    if let Some(detail) = detail {
        part["ok"] = false.into();
        part["detail"] = detail.into();
    } else if checks::NAMES.contains(&name) {
        println!("{name:28} equals the reference ({:.1} s)", started.elapsed().as_secs_f64());
    }
}

fn step(name: &str, options: &Options, part: &mut Value, file: Option<&Path>) -> Result<bool, String> {
    let device = match options.shim {
        true => Shim::device(1),
        false => CudaDevice::open(options.ordinal).map_err(|error| error.to_string())?,
    };
    match &options.broken {
        Some((broken, how)) if broken == name && how == "hang" => loop {
            std::thread::sleep(Duration::from_secs(1));
        },
        Some((broken, _)) if broken == name => std::process::abort(),
        _ => {}
    }
    if checks::NAMES.contains(&name) {
        checks::run(name, &device, options.shim || options.few);
        return Ok(true);
    }
    if let Some(&shape) = speed::shapes(options.shim).iter().find(|shape| shape.name == name) {
        let mut keep = |rows: &speed::Rows| {
            part["speed"] = rows.json();
            write(file, part)
        };
        return speed::run(&device, shape, options.shim, &mut keep);
    }
    let properties = device.properties();
    let gib = properties.memory_bytes as f64 / (1u64 << 30) as f64;
    println!("{device}: {} multiprocessors, {gib:.1} GiB", properties.multiprocessors);
    part["device"] = json!({
        "device": properties.name, "architecture": properties.architecture,
        "multiprocessors": properties.multiprocessors, "cache_bytes": properties.cache_bytes,
    });
    Ok(name == "device")
}

/// Writes beside and renames: whoever reads finds a whole file.
fn write(file: Option<&Path>, value: &Value) -> Result<(), String> {
    let Some(file) = file else { return Ok(()) };
    let beside: PathBuf = file.with_extension("part");
    let text = serde_json::to_string_pretty(value).map_err(|error| error.to_string())? + "\n";
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, file))
        .map_err(|error| format!("{}: {error}", file.display()))
}

/// What is known so far.
struct Report {
    value: Value,
    file: Option<PathBuf>,
    well: bool,
}

impl Report {
    fn new(options: &Options) -> Report {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let value =
            json!({ "shim": options.shim, "unix_time": now, "checks": [], "speed": { "experts": [] } });
        Report { value, file: options.json.as_ref().map(PathBuf::from), well: true }
    }

    fn take_device(&mut self, part: &Value) -> Result<(), String> {
        for (key, value) in part["device"].as_object().into_iter().flatten() {
            self.value[key] = value.clone();
        }
        write(self.file.as_deref(), &self.value)
    }

    fn take(&mut self, name: &str, mut part: Value) -> Result<(), String> {
        self.well &= part["ok"] == true;
        let speed = part.as_object_mut().and_then(|part| part.remove("speed"));
        if let Some(speed) = speed {
            for key in ["read_bytes_per_second", "int8_operations_per_second"] {
                self.value["speed"][key] = speed[key].clone();
            }
            let rows = speed["experts"].as_array().cloned().unwrap_or_default();
            push(&mut self.value["speed"]["experts"], rows);
        }
        if checks::NAMES.contains(&name) || part["ok"] != true {
            push(&mut self.value["checks"], vec![part]);
        }
        write(self.file.as_deref(), &self.value)
    }
}

fn push(list: &mut Value, values: Vec<Value>) {
    if let Some(list) = list.as_array_mut() {
        list.extend(values);
    }
}
