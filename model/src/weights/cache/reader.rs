//! One file of packed weights, open for reading: any part of any entry, by all threads, every block checked.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use gaterail_kernels::ops::{BLOCK_PANELS, restore};
use gaterail_kernels::{Arena, Device, PANEL_ROWS, Packed, PackedFormat};

use super::CacheError;
use super::index::{Entry, FIXED, Head, Place, checksum, head_bytes, parse_head};
use super::key::CacheKey;

/// An open file whose head is checked.
pub struct CacheFile {
    path: PathBuf,
    file: File,
    head: Head,
    /// Tensor -> its entries.
    entries: HashMap<String, Vec<usize>>,
    was_read: bool,
}

impl CacheFile {
    /// The file at `path`, if there is one; an error if it is not whole or belongs to something else.
    pub fn open(path: &Path, key: &CacheKey) -> Result<Option<CacheFile>, CacheError> {
        let Some(file) = open_regular(path)? else { return Ok(None) };
        let head = read_head(&file).map_err(CacheError)?;
        if head.index.key != key.digest {
            return Err(CacheError("belongs to another model".to_string()));
        }
        // Without the advice a cold file comes in small pieces.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Sequential);
        let mut entries: HashMap<String, Vec<usize>> = HashMap::new();
        for (at, entry) in head.index.entries.iter().enumerate() {
            entries.entry(entry.name.clone()).or_default().push(at);
        }
        Ok(Some(CacheFile { path: path.to_path_buf(), file, head, entries, was_read: false }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where its matrices belong.
    pub fn places(&self) -> Vec<Place> {
        let place = |entry: &Entry| Place {
            name: entry.name.clone(),
            first_row: entry.first_row as usize,
            rows: entry.rows as usize,
            first_col: entry.first_col as usize,
            cols: entry.cols as usize,
        };
        self.head.index.entries.iter().map(place).collect()
    }

    /// Whether something in it was of use.
    pub fn was_read(&self) -> bool {
        self.was_read
    }

    /// Marks the file as used now, as far as this user may.
    pub fn touch(&self) {
        let _ = self.file.set_modified(std::time::SystemTime::now());
    }

    /// The matrix at a place, in a form that `accepts` takes; `None` if no entry holds it.
    pub fn read(
        &mut self,
        place: &Place,
        accepts: impl Fn(PackedFormat) -> bool,
        device: &Device,
        arena: &mut Arena,
    ) -> Result<Option<Packed>, CacheError> {
        let places = self.entries.get(&place.name).into_iter().flatten();
        let mut found = places.filter_map(|&at| {
            let format = Some(self.head.formats[at]).filter(|&format| accepts(format))?;
            Part::of(place, &self.head.index.entries[at], format, self.head.first_sums[at])
        });
        let Some(part) = found.next() else { return Ok(None) };
        self.was_read = true;
        let shape = (part.format, place.rows, place.cols);
        restore(device, shape, arena, &|block, out| self.fill(&part, block, out)).map(Some)
    }

    /// Block `block` of a part, out of whole blocks of its entry.
    fn fill(&self, part: &Part, block: usize, out: &mut [u8]) -> Result<(), CacheError> {
        let run = part.groups.len() * part.format.record();
        let first = part.first_panel + block * BLOCK_PANELS;
        let panels = first..first + out.len() / run;
        let whole = part.block_panels(panels.start / BLOCK_PANELS);
        if run == part.panel_bytes && panels == whole {
            return self.read_block(part, panels.start / BLOCK_PANELS, out);
        }
        let mut scratch = Vec::new();
        for block in panels.start / BLOCK_PANELS..panels.end.div_ceil(BLOCK_PANELS) {
            let stored = part.block_panels(block);
            scratch.resize(stored.len() * part.panel_bytes, 0);
            self.read_block(part, block, &mut scratch)?;
            for panel in stored.start.max(panels.start)..stored.end.min(panels.end) {
                let from =
                    (panel - stored.start) * part.panel_bytes + part.groups.start * part.format.record();
                let to = (panel - panels.start) * run;
                out[to..to + run].copy_from_slice(&scratch[from..from + run]);
            }
        }
        Ok(())
    }

    /// A whole block of an entry, held against its checksum.
    fn read_block(&self, part: &Part, block: usize, out: &mut [u8]) -> Result<(), CacheError> {
        let at = self.head.data + part.offset + (block * BLOCK_PANELS * part.panel_bytes) as u64;
        self.file.read_exact_at(out, at).map_err(CacheError::io("cannot be read"))?;
        if checksum(out) != self.head.sums[part.first_sum + block] {
            return Err(CacheError("has data that do not fit their checksum".to_string()));
        }
        Ok(())
    }
}

/// Where a wanted matrix lies in an entry.
struct Part {
    format: PackedFormat,
    /// The entry's beginning in the data.
    offset: u64,
    first_sum: usize,
    /// Of the entry.
    panels: usize,
    panel_bytes: usize,
    /// Of the entry, where the part begins.
    first_panel: usize,
    /// The part's groups of the entry's.
    groups: Range<usize>,
}

impl Part {
    /// `None` if the entry does not hold all of the place, or not in whole panels and groups.
    fn of(place: &Place, entry: &Entry, format: PackedFormat, first_sum: usize) -> Option<Part> {
        let rows = inside(place.first_row, place.rows, entry.first_row, entry.rows, PANEL_ROWS)?;
        let cols = inside(place.first_col, place.cols, entry.first_col, entry.cols, format.group)?;
        let groups = (entry.cols as usize).div_ceil(format.group);
        Some(Part {
            format,
            offset: entry.offset,
            first_sum,
            panels: (entry.rows as usize).div_ceil(PANEL_ROWS),
            panel_bytes: groups * format.record(),
            first_panel: rows.start,
            groups: cols,
        })
    }

    /// The entry's panels in one of its blocks.
    fn block_panels(&self, block: usize) -> Range<usize> {
        block * BLOCK_PANELS..((block + 1) * BLOCK_PANELS).min(self.panels)
    }
}

/// The run `first..first + count` of `stored`, counted in steps that only go together.
fn inside(first: usize, count: usize, stored_first: u64, stored: u64, step: usize) -> Option<Range<usize>> {
    let start = first.checked_sub(stored_first as usize)?;
    let end = start.checked_add(count)?;
    let fits = end <= stored as usize && start.is_multiple_of(step);
    // What lies behind a last, short step belongs to others unless the entry ends there too.
    let whole = end.is_multiple_of(step) || end == stored as usize;
    (fits && whole).then(|| start / step..end.div_ceil(step))
}

/// `None` if nothing is there. Opening a pipe would wait for its writer.
fn open_regular(path: &Path) -> Result<Option<File>, CacheError> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if !metadata.is_file() => {
            return Err(CacheError("is no regular file".to_string()));
        }
        other => other.map_err(CacheError::io("cannot be read"))?,
    };
    File::open(path).map(Some).map_err(CacheError::io("cannot be read"))
}

/// The checked head of a file.
pub(super) fn read_head(file: &File) -> Result<Head, String> {
    let read = |error: std::io::Error| format!("cannot be read: {error}");
    let bytes = file.metadata().map_err(read)?.len();
    if bytes < FIXED as u64 {
        return Err("is cut off".to_string());
    }
    let mut head = vec![0; FIXED];
    file.read_exact_at(&mut head, 0).map_err(read)?;
    head.resize(FIXED + head_bytes(&head, bytes)? as usize, 0);
    file.read_exact_at(&mut head[FIXED..], FIXED as u64).map_err(read)?;
    parse_head(&head, bytes)
}
