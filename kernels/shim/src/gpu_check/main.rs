//! `gaterail-gpu-check`: the CUDA kernels on this machine's GPU, first against the reference, then against the clock.
//!
//! usage: gaterail-gpu-check [--shim] [--device N] [--only checks|speed] [--few] [--here] [--limit SECONDS]
//!                           [--budget SECONDS] [--json FILE] [--break NAME abort|hang]
//!        gaterail-gpu-check --compile ARCHITECTURE
//!
//! Every check and every model's shape is a process of its own: a kernel that hangs, or leaves the device in a fault, takes
//! nothing else with it. The report is written again after each. `--here` does all in this process, for tools such as
//! compute-sanitizer; `--few` checks little, for slow ones. No job may take longer than the limit, and none is started once
//! the budget is spent. `--break` lets a job die, to see that the others run.
//! `--shim` walks the whole way without a GPU, at tiny shapes, and prints no speed: it proves this program.
//! `--compile` fills the kernels' cache folder without a GPU, for a machine without NVRTC.
//! `ops/gpu-check/run.sh` puts compute-sanitizer before it and torch beside it.
#![forbid(unsafe_code)]

mod checks;
mod jobs;
mod speed;

use std::process::ExitCode;

/// What was asked for on the command line.
pub struct Options {
    shim: bool,
    ordinal: usize,
    checks: bool,
    speed: bool,
    few: bool,
    here: bool,
    /// Of one job: far more than any needs, and far less than all together have.
    limit_s: u64,
    /// Of all.
    budget_s: u64,
    /// A job, and how it dies.
    broken: Option<(String, String)>,
    json: Option<String>,
    /// The one job of a child.
    job: Option<String>,
    compile: Option<String>,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        shim: false,
        ordinal: 0,
        checks: true,
        speed: true,
        few: false,
        here: false,
        limit_s: 90,
        budget_s: 600,
        broken: None,
        json: None,
        job: None,
        compile: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        let number = |text: String| text.parse().map_err(|_| format!("{argument} wants a number"));
        match argument.as_str() {
            "--shim" => options.shim = true,
            "--few" => options.few = true,
            "--here" => options.here = true,
            "--device" => options.ordinal = number(value()?)? as usize,
            "--limit" => options.limit_s = number(value()?)?,
            "--break" => options.broken = Some((value()?, value()?)),
            "--budget" => options.budget_s = number(value()?)?,
            "--json" => options.json = Some(value()?),
            "--job" => options.job = Some(value()?),
            "--compile" => options.compile = Some(value()?),
            "--only" => match value()?.as_str() {
                "checks" => options.speed = false,
                "speed" => options.checks = false,
                other => return Err(format!("--only wants checks or speed, not {other}")),
            },
            other => return Err(format!("{other} is not known; see the head of kernels/shim/src/gpu_check")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

/// Whether all is well.
fn run(options: &Options) -> Result<bool, String> {
    if let Some(architecture) = &options.compile {
        let count = gaterail_kernels::cuda::compile_all(architecture).map_err(|error| error.to_string())?;
        println!("{count} sources in all their forms for {architecture} are in the cache");
        return Ok(true);
    }
    match &options.job {
        Some(name) => jobs::child(name, options),
        None => jobs::all(options),
    }
}
