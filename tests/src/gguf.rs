//! GGUF files taken apart and written again, changed: for tests that want to see the error.

use gaterail_model::checkpoint::StoredType;
use gaterail_model::gguf::{Value, parse_gguf};

const ALIGNMENT: usize = 32;

/// What a file holds, to be changed.
pub struct Parts {
    pub version: u32,
    pub keys: Vec<(String, Value)>,
    pub tensors: Vec<Stored>,
}

/// A tensor with its bytes.
pub struct Stored {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// ggml's number of the type.
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// Another offset than the one it has.
    pub offset: Option<u64>,
}

impl Parts {
    /// A fixture's file.
    pub fn of(fixture: &str) -> Parts {
        let path = crate::fixtures_folder().join(fixture).join("model.gguf");
        Parts::parse(&std::fs::read(path).expect("a fixture"))
    }

    pub fn parse(file: &[u8]) -> Parts {
        let header = parse_gguf(file).expect("a whole file");
        let keys = header.metadata.iter().map(|(key, value)| (key.to_owned(), value.clone())).collect();
        let tensors = header.tensors.into_iter().map(|tensor| Stored {
            kind: match tensor.stored {
                StoredType::F32 => 0,
                StoredType::F16 => 1,
                StoredType::Q4_0 => 2,
                StoredType::Q8_0 => 8,
                StoredType::Bf16 => 30,
                other => panic!("{other} in a fixture"),
            },
            bytes: file[tensor.bytes].to_vec(),
            name: tensor.name,
            shape: tensor.shape,
            offset: None,
        });
        Parts { version: header.version, keys, tensors: tensors.collect() }
    }

    /// Sets a key, or removes it.
    pub fn set(&mut self, key: &str, value: Option<Value>) {
        self.keys.retain(|(known, _)| known != key);
        self.keys.extend(value.map(|value| (key.to_owned(), value)));
    }

    pub fn tensor(&mut self, name: &str) -> &mut Stored {
        let found = self.tensors.iter_mut().find(|tensor| tensor.name == name);
        found.unwrap_or_else(|| panic!("no tensor {name}"))
    }

    /// A file of the parts, whatever they say.
    pub fn bytes(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            put_text(&mut file, key);
            file.extend(kind_of(value).to_le_bytes());
            put_value(&mut file, value);
        }
        let mut data: Vec<u8> = Vec::new();
        for tensor in &self.tensors {
            put_text(&mut file, &tensor.name);
            file.extend((tensor.shape.len() as u32).to_le_bytes());
            for &side in tensor.shape.iter().rev() {
                file.extend((side as u64).to_le_bytes());
            }
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
        file.extend(data);
        file
    }
}

fn put_text(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

fn kind_of(value: &Value) -> u32 {
    match value {
        Value::Unsigned(_) => 10,
        Value::Signed(_) => 11,
        Value::Float(_) => 12,
        Value::Flag(_) => 7,
        Value::Text(_) => 8,
        Value::List(_) => 9,
    }
}

fn put_value(file: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Unsigned(number) => file.extend(number.to_le_bytes()),
        Value::Signed(number) => file.extend(number.to_le_bytes()),
        Value::Float(number) => file.extend(number.to_le_bytes()),
        Value::Flag(flag) => file.push((*flag).into()),
        Value::Text(text) => put_text(file, text),
        Value::List(list) => {
            file.extend(list.first().map_or(0, kind_of).to_le_bytes());
            file.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|value| put_value(file, value));
        }
    }
}
