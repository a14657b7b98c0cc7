//! Files in a folder that others may write to, as the cache of a group: nothing is opened through a link that
//! somebody has put there, and nothing that exists is taken for new.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// What is opened must be the file itself; a pipe in its place must not make the caller wait.
const PLAIN: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK);
/// Of a new lock, as Hugging Face's library has it, for a cache that a group shares.
const LOCK_MODE: u32 = 0o664;
/// Times that a file may vanish between the two halves of "create it, or open what is there".
const TRIES_MAX: usize = 8;

/// A file whose lock is taken, and that is never written to.
pub fn lock_file(path: &Path) -> io::Result<File> {
    let Opened { file, created } = create_or_open(path)?;
    if created {
        // Not every file system has permissions.
        let _ = file.set_permissions(Permissions::from_mode(LOCK_MODE));
    }
    Ok(file)
}

/// A file to write to, with what it may hold already. One that has a second name is somebody else's too.
pub fn partial_file(path: &Path) -> io::Result<File> {
    let Opened { file, .. } = create_or_open(path)?;
    if file.metadata()?.nlink() > 1 { Err(refused("it has another name too")) } else { Ok(file) }
}

/// Writes a file that does not exist yet.
pub fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    create(path)?.write_all(bytes)
}

struct Opened {
    file: File,
    created: bool,
}

fn create_or_open(path: &Path) -> io::Result<Opened> {
    for _ in 0..TRIES_MAX {
        match create(path) {
            Ok(file) => return Ok(Opened { file, created: true }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        match OpenOptions::new().read(true).write(true).custom_flags(PLAIN.bits() as i32).open(path) {
            Ok(file) if file.metadata()?.is_file() => return Ok(Opened { file, created: false }),
            Ok(_) => return Err(refused("it is not a file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
                return Err(refused("it is a link, and nothing is written through links here"));
            }
            Err(error) => return Err(error),
        }
    }
    Err(refused("it comes and goes"))
}

/// `create_new` follows no link either.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).open(path)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
