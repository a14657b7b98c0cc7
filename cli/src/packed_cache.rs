//! `--packed-cache` and `gaterail cache`: where packed weights are kept, and what is there.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use gaterail_model::weights::cache::{self, CacheError, CacheOutcome, CachedFile, PackedCache, Written};

use crate::error::CliError;
use crate::progress::bytes_text;
use crate::terminal;

/// Where packed weights are kept from one start to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackedCacheArg {
    Off,
    /// In the user's cache folder.
    Auto,
    Folder(PathBuf),
}

/// `off`, `auto` or a folder.
pub fn parse(text: &str) -> Result<PackedCacheArg, String> {
    match text {
        "" => Err("expected off, auto or a folder".to_string()),
        "off" => Ok(PackedCacheArg::Off),
        "auto" => Ok(PackedCacheArg::Auto),
        folder => Ok(PackedCacheArg::Folder(PathBuf::from(folder))),
    }
}

/// As on the command line.
impl std::fmt::Display for PackedCacheArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PackedCacheArg::Off => f.write_str("off"),
            PackedCacheArg::Auto => f.write_str("auto"),
            PackedCacheArg::Folder(folder) => folder.display().fmt(f),
        }
    }
}

impl PackedCacheArg {
    /// `None` where nothing is kept.
    pub fn cache(&self) -> Option<PackedCache> {
        self.folder().map(PackedCache::new)
    }

    fn folder(&self) -> Option<PathBuf> {
        match self {
            PackedCacheArg::Off => None,
            PackedCacheArg::Auto => default_folder(|name| std::env::var_os(name).map(PathBuf::from)),
            PackedCacheArg::Folder(folder) => Some(folder.clone()),
        }
    }
}

/// `$GATERAIL_CACHE/packed`, else `gaterail/packed` in the user's cache folder; `None` where there is no home.
fn default_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|path| path.is_absolute());
    let own = set("GATERAIL_CACHE");
    let user = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Some(own.or_else(|| Some(user()?.join("gaterail")))?.join("packed"))
}

/// Packed weights on their way to the disk, beside the running model.
#[must_use]
pub struct Keeping(Option<JoinHandle<Result<Written, CacheError>>>);

/// Says what a person should know of the cache, and begins to write what is to be kept.
pub fn keep(outcome: CacheOutcome) -> Keeping {
    outcome.notes.iter().for_each(|note| terminal::note(&terminal::visible(&format!("gaterail: {note}"))));
    let Some(pending) = outcome.pending else { return Keeping(None) };
    let writer = std::thread::Builder::new().name("packed-cache".to_string());
    Keeping(writer.spawn(move || pending.write(&mut |_| {})).ok())
}

impl Keeping {
    /// Waits until the weights are kept. That they could not be is a line, no failure.
    pub fn finish(self) {
        let Some(writer) = self.0 else { return };
        if !writer.is_finished() {
            terminal::note("gaterail: keeping the packed weights for the next start (can be interrupted)");
        }
        let why = match writer.join() {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the writer panicked; its message is above".to_string(),
        };
        terminal::note(&terminal::visible(&format!("gaterail: packed weights are not kept: {why}")));
    }
}

/// List or remove packed weights that are kept for the next start
#[derive(Args, Debug)]
pub struct CacheArgs {
    #[command(subcommand)]
    command: CacheCommand,

    /// The folder: auto, or a path
    #[arg(long, value_name = "DIR", value_parser = parse, default_value = "auto", global = true)]
    packed_cache: PackedCacheArg,
}

#[derive(Subcommand, Debug)]
enum CacheCommand {
    /// One line per file, the one that was used longest ago first
    List,
    /// Remove all files
    Clear,
}

pub fn run(args: &CacheArgs) -> Result<(), CliError> {
    let Some(folder) = args.packed_cache.folder() else {
        return Err(CliError::Usage("there is no cache: give its folder with --packed-cache".to_string()));
    };
    let failed = || CliError::io(folder.display().to_string());
    match args.command {
        CacheCommand::List => {
            let files = cache::list(&folder).map_err(failed())?;
            let lines: String = files.iter().map(line).collect();
            terminal::print(&terminal::visible(&lines))
        }
        CacheCommand::Clear => {
            let (files, bytes) = cache::clear(&folder).map_err(failed())?;
            terminal::print(&format!("removed {files} file(s), {}\n", bytes_text(bytes)))
        }
    }
}

fn line(file: &CachedFile) -> String {
    let hours = SystemTime::now().duration_since(file.used).map_or(0, |age| age.as_secs() / 3600);
    let what = match file.index() {
        Ok(index) => format!("{}  {}", index.precision, index.model),
        Err(error) => error,
    };
    let name = file.path.file_name().unwrap_or_default().to_string_lossy();
    format!("{}  used {hours} h ago  {what}  ({name})\n", bytes_text(file.bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_by_environment() {
        let folder = |set: &[(&str, &str)]| {
            let set: Vec<(String, PathBuf)> = set.iter().map(|(k, v)| (k.to_string(), v.into())).collect();
            default_folder(|name| set.iter().find(|(key, _)| key == name).map(|(_, path)| path.clone()))
        };
        let home = ("HOME", "/home/a");
        assert_eq!(folder(&[]), None);
        assert_eq!(folder(&[home]), Some("/home/a/.cache/gaterail/packed".into()));
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "/x")]), Some("/x/gaterail/packed".into()));
        assert_eq!(folder(&[home, ("XDG_CACHE_HOME", "x")]), Some("/home/a/.cache/gaterail/packed".into()));
        assert_eq!(folder(&[home, ("GATERAIL_CACHE", "/g")]), Some("/g/packed".into()));
    }
}
