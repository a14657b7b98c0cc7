//! `gaterail pull`: its arguments, and what it prints.

use std::path::Path;

use clap::Args;

use super::config::HubConfig;
use super::name::RepoSpec;
use super::pull::{PullRequest, Pulled, pull};
use super::select::FileChoice;
use crate::error::CliError;
use crate::{progress, terminal};

/// Fetch a model from a Hugging Face hub into the local cache
///
/// What is interrupted goes on where it stopped when the command is run again. The cache is shared with
/// Hugging Face's own tools: what they fetched is not fetched again. Environment: HF_ENDPOINT, HF_HUB_CACHE,
/// HF_HOME, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE.
#[derive(Args, Clone, Debug)]
pub struct PullArgs {
    /// The model, for example Qwen/Qwen3-30B-A3B; REVISION is a branch, a tag, a commit or refs/pr/N
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    pub model: String,

    /// Fetch all files but weights in other formats, not only those that Gaterail reads
    #[arg(long, conflicts_with = "include")]
    pub all: bool,

    /// Fetch the files that match instead, for example '*.json' (may be given several times)
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,

    /// Access token for gated and private models; HF_TOKEN is better, as other users can see arguments
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
}

/// Pulls, shows the progress on stderr, and prints the folder on stdout.
///
/// `free_bytes` tells the free space of the disk that holds a path (which may not exist yet), if it can.
pub fn run(args: &PullArgs, free_bytes: &dyn Fn(&Path) -> Option<u64>) -> Result<(), CliError> {
    let config = HubConfig::from_env(args.token.as_deref())?;
    let repo = RepoSpec::parse(&args.model)?;
    let files = match (args.all, args.include.as_slice()) {
        (true, _) => FileChoice::All,
        (false, []) => FileChoice::Needed,
        (false, patterns) => FileChoice::Matching(patterns.to_vec()),
    };
    let request = PullRequest { repo, files, free_bytes: free_bytes(&config.cache_dir), config: &config };
    let pulled = pull(&request, progress::on_stderr("pull").as_mut())?;
    terminal::note(&last_words(&request.repo, &pulled));
    terminal::print(&format!("{}\n", pulled.folder.display()))
}

/// What has come of it, and what to do next.
pub fn last_words(repo: &RepoSpec, pulled: &Pulled) -> String {
    let mut lines = Vec::new();
    match pulled.unverified {
        0 => {}
        1 => lines.push("1 file could not be verified (its server gives no checksum).".to_owned()),
        n => lines.push(format!("{n} files could not be verified (their server gives no checksum).")),
    }
    match &pulled.missing {
        None if pulled.tokenizer => {
            lines.push(format!("Complete. Try:  gaterail generate {repo} \"Once upon a time\""));
        }
        None => lines.push(format!(
            "The weights are complete, but there is no tokenizer.json: only token ids can be used. \
             Try:  gaterail generate {repo} --tokens 1,2,3"
        )),
        Some(missing) => lines.push(format!(
            "The chosen files are there; to run the model more is needed ({missing}): gaterail pull {repo}"
        )),
    }
    if let Some(kept) = &pulled.kept {
        lines.push(format!("Until then `{}` stays at {kept:.8}, which is whole.", repo.revision()));
    }
    lines.join("\n")
}
