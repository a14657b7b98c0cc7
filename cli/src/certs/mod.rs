//! `gaterail certs`: certificates for routers and workers that see each other over a network.
//!
//! | file | |
//! |---|---|
//! | [`make`] | a CA, and what it signs |
//! | [`renew`] | new certificates for the keys that are there |
//! | [`write`] | files that nobody else reads, and that are not overwritten by accident |
//! | [`show`] | what is in a folder, and until when |

mod make;
mod renew;
mod show;
mod write;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gaterail_cluster::tls::{CertFiles, date, is_name};

use crate::error::CliError;
use crate::terminal;

const DAYS: u32 = 825;
const DAYS_MAX: i64 = 36_500;

/// Make and show certificates, for TLS between a router and its workers
///
/// A certificate authority (CA) of your own for development and for networks of your own; where there is a real one, its
/// files will do as well.
#[derive(Args)]
pub struct CertsArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Make a CA, a certificate for the router and one for its workers
    Init {
        /// The folder to make; gaterail/certs in the user's configuration by default
        dir: Option<PathBuf>,
        /// A name or an address by which workers reach the router, beside localhost and this machine's name; may be given several times
        #[arg(long, value_name = "NAME|IP", value_delimiter = ',', value_parser = parse_host)]
        host: Vec<String>,
        /// How long they hold
        #[arg(long, value_name = "N", default_value_t = DAYS, value_parser = clap::value_parser!(u32).range(1..=DAYS_MAX))]
        days: u32,
        /// Make all anew where there are some: nobody who has the old ones gets in any more
        #[arg(long)]
        force: bool,
        /// Make new certificates of the CA that is there, for the keys and the router's names that are there (and --host): who has the old ones is let in until they end
        #[arg(long, conflicts_with = "force")]
        renew: bool,
    },
    /// Show whose certificates are in a folder, for which names, and until when
    Show {
        /// The folder; gaterail/certs in the user's configuration by default
        dir: Option<PathBuf>,
    },
}

pub fn run(args: &CertsArgs) -> Result<(), CliError> {
    match &args.action {
        Action::Init { dir, host, days, renew: true, .. } => {
            terminal::print(&renew::renew(&folder(dir.as_ref())?, host, *days)?)
        }
        Action::Init { dir, host, days, force, .. } => init(&folder(dir.as_ref())?, host, *days, *force),
        Action::Show { dir } => terminal::print(&show::text(&folder(dir.as_ref())?)?),
    }
}

fn folder(dir: Option<&PathBuf>) -> Result<CertFiles, CliError> {
    match dir {
        Some(dir) => Ok(CertFiles::new(dir)),
        None => Ok(CertFiles::new(crate::keys::config_folder()?.join("certs"))),
    }
}

fn init(files: &CertFiles, hosts: &[String], days: u32, force: bool) -> Result<(), CliError> {
    let names = names(hosts);
    let made = make::all(&names, days)?;
    write::all(files, &made, force)?;
    let (dir, ends) = (files.folder.display(), date(made.ends));
    // The name that others use is the one that was asked for.
    let reached = hosts.first().or(names.get(3)).map_or("THIS_HOST", String::as_str);
    let reached = if reached.contains(':') { format!("[{reached}]") } else { reached.to_string() };
    terminal::print(&format!(
        "In {dir}, until {ends} ({days} days):\n  \
         ca.pem      ca-key.pem      the CA; whoever has its key can make workers: leave it here\n  \
         router.pem  router-key.pem  the router, as {}\n  \
         worker.pem  worker-key.pem  its workers\n\n\
         The router, on this machine:\n  \
         gaterail serve MODEL --cluster-listen 0.0.0.0:8100 --cluster-certs {dir}\n\
         A worker, on any machine, with ca.pem, worker.pem and worker-key.pem in a folder CERTS:\n  \
         gaterail worker --join {reached}:8100 --certs CERTS\n",
        names.join(", ")
    ))
}

fn parse_host(text: &str) -> Result<String, String> {
    let wrong = || "expected a host's name or an address, such as gpu1.example or 10.0.0.5".to_string();
    if is_name(text) { Ok(text.to_string()) } else { Err(wrong()) }
}

/// What the router is called: this machine, and what else was given.
fn names(hosts: &[String]) -> Vec<String> {
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let usual = ["localhost", "127.0.0.1", "::1"].map(str::to_string).into_iter();
    let mut names: Vec<String> = Vec::new();
    for name in usual.chain([own]).chain(hosts.iter().cloned()) {
        // A machine may be called what no certificate can say.
        if is_name(&name) && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
