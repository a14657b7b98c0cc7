//! Reading the header's bytes in order. Every length is compared with what is left before anything is taken.

/// A header with its metadata; no published one comes near.
const HEADER_BYTES_MAX: usize = 1 << 30;
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// A place in the header.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a [u8]) -> Cursor<'a> {
        Cursor { bytes: &file[..file.len().min(HEADER_BYTES_MAX)], at: 0 }
    }

    /// Bytes from the start of the file.
    pub fn position(&self) -> usize {
        self.at
    }

    /// `count` things of at least `least` bytes each: whether they can still follow.
    pub fn expect(&self, count: u64, least: usize, what: &str) -> Result<usize, String> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(count).ok().filter(|&count| count <= left / least) {
            Some(count) => Ok(count),
            None => Err(format!(
                "{what}: {count} entries are claimed, but only {left} bytes of header can follow: truncated or malformed"
            )),
        }
    }

    fn take(&mut self, length: usize, what: &str) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!("{what}: the header ends at byte {}, in the middle of it", self.bytes.len()));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N, what)?);
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, String> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, String> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A string: its length, then UTF-8.
    pub fn text(&mut self, what: &str) -> Result<&'a str, String> {
        let length = self.u64(what)?;
        if length > TEXT_BYTES_MAX {
            return Err(format!("{what}: a string of {length} bytes; at most {TEXT_BYTES_MAX} are read"));
        }
        let bytes = self.take(length as usize, what)?;
        std::str::from_utf8(bytes).map_err(|_| format!("{what}: a string that is not UTF-8"))
    }
}
