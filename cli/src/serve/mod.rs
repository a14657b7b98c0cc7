//! `gaterail serve`: a model behind OpenAI's interface.
//!
//! | file | |
//! |---|---|
//! | [`table`] | every setting |
//! | [`config`] | what they mean |
//! | [`plan`] | whether it fits in memory |
//! | [`load`] | the model, the engine, the door |
//! | [`workers`] | the processes that hold its experts, if it has any |
//! | [`run`] | sockets and signals: from the first connection to the last |
//! | [`banner`] | what a person sees when it is ready |

mod banner;
pub mod config;
mod load;
mod plan;
mod run;
mod table;
pub mod workers;

use std::path::PathBuf;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use gaterail_router::auth::{Gate, KeyLimits, NewKey};
use gaterail_router::serving::Entrance;

use config::ServeConfig;
pub use config::parse_bytes;
pub use run::Serving;
use run::{Loading, Ports};

use crate::error::CliError;
use crate::settings::{self, Settings};
use crate::terminal;

/// The flags as clap read them.
pub struct ServeArgs {
    matches: ArgMatches,
}

impl Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        let command = command
            .about("Serve a model behind OpenAI's interface")
            .long_about(
                "Serve a model behind OpenAI's interface\n\nEvery setting is a flag, a variable (GATERAIL_MAX_BATCH for \
                 --max-batch) or a key of a TOML file (max_batch); the first of them that says something counts. \
                 --print-config shows each value and where it came from.",
            )
            .mut_args(|arg| arg.hide_env(true));
        settings::augment(command, &table::TABLE)
    }

    fn augment_args_for_update(command: Command) -> Command {
        ServeArgs::augment_args(command)
    }
}

impl FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<ServeArgs, clap::Error> {
        Ok(ServeArgs { matches: matches.clone() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.matches = matches.clone();
        Ok(())
    }
}

pub fn run(args: &ServeArgs) -> Result<(), CliError> {
    crate::worker::parent::end_with()?;
    let settings = read(args)?;
    if settings.text("log") == Some("json") {
        terminal::speak_json();
    }
    let config = ServeConfig::new(&settings)?;
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    settings::misspelt(&table::TABLE, variables).iter().for_each(|note| terminal::note(note));
    if settings.switch("print-config") {
        return terminal::print(&settings.show(&table::SECRET));
    }
    let gate = load::gate(&config)?;
    // Before the model: a port that is taken is known at once.
    let ports = Ports::bind(&config)?;
    let addresses = ports.addresses;
    let entrance = Entrance::new(gate, &config.server);
    let mut loading = Loading::start(ports, &entrance, &config)?;
    let loaded = load::load(&config, entrance, &mut loading)?;
    let banner = banner::text(&loaded, addresses, &config);
    let serving = loading.serve(loaded);
    serving.until_signal(&config, || terminal::note(&banner))
}

/// A server for this process alone: on a free port of this machine, behind a key that nobody else knows. Returns it with
/// its address and the key.
pub fn start_own(model: Option<&str>) -> Result<(Serving, String, String), CliError> {
    let flags =
        ["serve", "--listen", "127.0.0.1:0", "--log", "off", "--workers", "0"].into_iter().chain(model);
    let command = settings::augment(Command::new("serve"), &table::TABLE);
    let matches = command.try_get_matches_from(flags).map_err(|error| CliError::Usage(error.to_string()))?;
    let config = ServeConfig::new(&Settings::new(&table::TABLE, &matches, None)?)?;
    let key = NewKey::make("chat", KeyLimits::default(), 0)
        .map_err(|error| CliError::Refused(format!("the system has no random numbers: {error}")))?;
    let gate = Gate::new(None, std::slice::from_ref(&key.text))
        .map_err(|error| CliError::Refused(error.to_string()))?;
    let ports = Ports::bind(&config)?;
    let url = format!("http://{}/v1", ports.addresses.http);
    let entrance = Entrance::new(gate, &config.server);
    let mut loading = Loading::start(ports, &entrance, &config)?;
    let loaded = load::load(&config, entrance, &mut loading)?;
    let serving = loading.serve(loaded);
    Ok((serving, url, key.text))
}

fn read(args: &ServeArgs) -> Result<Settings, CliError> {
    let first = Settings::new(&table::TABLE, &args.matches, None)?;
    let file = match first.text("config") {
        Some(path) => Some(PathBuf::from(path)),
        None => crate::keys::config_folder()
            .ok()
            .map(|folder| folder.join("serve.toml"))
            .filter(|path| path.is_file()),
    };
    Settings::new(&table::TABLE, &args.matches, file.as_deref())
}
