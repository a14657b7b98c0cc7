//! Writing a file of packed weights: beside its place, whole, then renamed into it.

use std::fs::{File, TryLockError};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::CacheError;
use super::folder;
use super::index::{ALIGNMENT, Entry, FIXED, Index, MAGIC, Place, checksum, checksum_of_head, form_name};
use super::key::CacheKey;
use super::matrix::Matrix;

/// Writers of one file at a time.
const WRITERS_MAX: usize = 64;

/// A file that is being written; nothing is left of it unless it is put in its place.
struct Unfinished {
    path: PathBuf,
    /// Locked, so that others see that somebody writes.
    file: File,
    placed: bool,
}

/// Writes `matrices` as the file of `key`; told of bytes as they are written. The path and the bytes of the file.
pub fn write(
    folder: &Path,
    key: &CacheKey,
    matrices: &[(Place, Matrix)],
    written: &mut dyn FnMut(u64),
) -> Result<(PathBuf, u64), CacheError> {
    let index = index(key, matrices);
    let text = serde_json::to_vec(&index).map_err(|error| CacheError(error.to_string()))?;
    let count: u64 = index.entries.iter().map(|entry| Entry::blocks(entry.rows)).sum();
    let data = (FIXED as u64 + text.len() as u64 + 8 * count).next_multiple_of(ALIGNMENT);
    let bytes = data + index.entries.last().map_or(0, |entry| entry.offset + entry.bytes);
    let path = key.path(folder);
    let unfinished = Unfinished::create(&path)?;
    let cannot = "cannot be written";
    // A full disk shows now where the file system can tell.
    match rustix::fs::fallocate(&unfinished.file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Err(rustix::io::Errno::NOSPC) => return Err(CacheError("the disk is full".to_string())),
        _ => unfinished.file.set_len(bytes).map_err(CacheError::io(cannot))?,
    }
    let mut sums = Vec::new();
    for ((_, matrix), entry) in matrices.iter().zip(&index.entries) {
        let mut at = data + entry.offset;
        matrix.blocks(|block| {
            sums.extend(checksum(block).to_le_bytes());
            unfinished.file.write_all_at(block, at).map_err(CacheError::io(cannot))?;
            at += block.len() as u64;
            written(block.len() as u64);
            Ok(())
        })?;
    }
    unfinished.file.write_all_at(&head(&text, &sums), 0).map_err(CacheError::io(cannot))?;
    unfinished.file.sync_all().map_err(CacheError::io(cannot))?;
    unfinished.finish(&path)?;
    Ok((path, bytes))
}

fn index(key: &CacheKey, matrices: &[(Place, Matrix)]) -> Index {
    let mut end = 0u64;
    let entries = matrices.iter().map(|(place, matrix)| {
        let (offset, bytes) = (end.next_multiple_of(ALIGNMENT), matrix.stored_bytes() as u64);
        end = offset + bytes;
        Entry {
            name: place.name.clone(),
            first_row: place.first_row as u64,
            rows: place.rows as u64,
            first_col: place.first_col as u64,
            cols: place.cols as u64,
            form: form_name(matrix.format()),
            offset,
            bytes,
        }
    });
    let entries = entries.collect();
    Index {
        key: key.digest.clone(),
        held: key.held.clone(),
        model: key.model.display().to_string(),
        precision: format!("{:?}", key.precision).to_lowercase(),
        entries,
    }
}

/// The bytes before the data.
fn head(text: &[u8], sums: &[u8]) -> Vec<u8> {
    let body = [text, sums].concat();
    let mut head = MAGIC.to_vec();
    head.extend(gaterail_kernels::PACKED_LAYOUT.to_le_bytes());
    head.extend([0; 4]);
    head.extend((text.len() as u64).to_le_bytes());
    head.extend((sums.len() as u64 / 8).to_le_bytes());
    head.extend(checksum_of_head(&head, &body).to_le_bytes());
    head.extend(body);
    head
}

impl Unfinished {
    fn create(path: &Path) -> Result<Unfinished, CacheError> {
        let cannot = CacheError::io("cannot be made");
        for attempt in 0..WRITERS_MAX {
            let beside = folder::unfinished_path(path, attempt);
            match File::create_new(&beside) {
                Ok(file) => {
                    // Until it is locked, it looks as if its writer were gone: whoever has its lock is about to remove it.
                    // A file system without locks does without: nobody takes the file away for a day.
                    let swept = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
                    if !swept && folder::is_at(&file, &beside) {
                        return Ok(Unfinished { path: beside, file, placed: false });
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot(error)),
            }
        }
        Err(CacheError(format!("{WRITERS_MAX} others are writing it")))
    }

    fn finish(mut self, path: &Path) -> Result<(), CacheError> {
        std::fs::rename(&self.path, path).map_err(CacheError::io("cannot be put in its place"))?;
        self.placed = true;
        // That the name lasts through a power cut is worth asking for, not worth failing for.
        let _ = path.parent().map(|folder| File::open(folder).and_then(|folder| folder.sync_all()));
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.placed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    /// Ends those who go on until it is set, also where a test fails.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    #[test]
    fn nobody_sweeps_away_what_another_writes() {
        let home = tempfile::tempdir().expect("a folder");
        let done = AtomicBool::new(false);
        let gone = std::thread::scope(|scope| {
            let _done = Done(&done);
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    folder::clear(home.path()).expect("cleared");
                }
            });
            let gone = (0..20_000).filter(|_| {
                let unfinished = Unfinished::create(&home.path().join("a.packed")).expect("a file");
                !unfinished.path.exists()
            });
            gone.count()
        });
        assert_eq!(gone, 0, "files were taken from their writer");
    }
}
