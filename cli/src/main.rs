//! The `gaterail` binary: it parses the command line and starts what was asked for.
#![forbid(unsafe_code)]

mod bench;
mod cards;
mod certs;
mod chat;
mod cores;
mod demo;
mod device;
mod endpoint;
mod error;
mod evaluate;
mod generate;
mod hub;
mod inspect;
mod itself;
mod keys;
mod machine;
mod packed_cache;
mod plan;
mod progress;
mod rebalance;
mod roots;
mod serve;
mod settings;
mod source;
mod status;
mod synth;
mod terminal;
mod tls;
mod weights;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs large Mixture-of-Experts language models on your own machines.
#[derive(Parser)]
#[command(name = "gaterail", version, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::GenerateArgs),
    Evaluate(evaluate::EvaluateArgs),
    Serve(serve::ServeArgs),
    Worker(Box<worker::WorkerArgs>),
    Status(status::StatusArgs),
    Rebalance(rebalance::RebalanceArgs),
    Chat(chat::ChatArgs),
    Bench(Box<bench::BenchArgs>),
    Keys(keys::KeysArgs),
    Certs(certs::CertsArgs),
    Inspect(inspect::InspectArgs),
    Plan(plan::PlanArgs),
    #[command(name = "plan-echo", hide = true)]
    PlanEcho(plan::EchoArgs),
    Synth(synth::SynthArgs),
    Pull(hub::PullArgs),
    Cache(packed_cache::CacheArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Generate(args) => generate::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Worker(args) => worker::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Rebalance(args) => rebalance::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Certs(args) => certs::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::PlanEcho(args) => plan::echo(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Pull(args) => hub::run(&args, &machine::free_disk_bytes),
        Command::Cache(args) => packed_cache::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            terminal::note(&terminal::visible(&format!("gaterail: {error}")));
            ExitCode::from(error.exit_code())
        }
    }
}
