//! Copies of a fixture, broken in one way: for tests that want to see the error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// A copy of a fixture in a folder of its own, which goes with the value.
pub struct Copy {
    folder: tempfile::TempDir,
}

impl Copy {
    pub fn of(fixture: &str) -> Copy {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let from = crate::fixtures_folder().join(fixture);
        for entry in std::fs::read_dir(&from).expect("a fixture") {
            let entry = entry.expect("a file of a fixture");
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy");
        }
        Copy { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).expect("a file of the copy")
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.file(name), bytes).expect("a writable copy");
    }

    /// Changes a JSON file.
    pub fn json(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let mut value: Value = serde_json::from_slice(&self.bytes(name)).expect("JSON");
        change(value.as_object_mut().expect("an object"));
        self.write(name, value.to_string().as_bytes());
    }

    /// Changes the header of a safetensors file, and its data.
    pub fn tensors(&self, name: &str, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
        let bytes = self.bytes(name);
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).expect("a header");
        let mut data = bytes[8 + length..].to_vec();
        change(header.as_object_mut().expect("an object"), &mut data);
        self.write(name, &safetensors(&header.to_string(), &data));
    }
}

/// A file of a header and data, whatever they say.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}
