//! What a `tokenizer.json` from anywhere may ask for. In: the file's bytes. Out: its decoder, or why it is refused.
//!
//! The tokenizers crate runs every step it finds and trusts their sizes. A chain of `a` -> `aa` doubles a text with
//! each link, so chains are counted and their growth is multiplied before anything runs. What panics is caught.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

/// Steps in the normalizer, the pre-tokenizer, the post-processor or the decoder.
const STEPS_MAX: usize = 32;
/// Entries of any list in them.
const LIST_MAX: usize = 64;
/// How many times longer they may make a text.
const GROWTH_MAX: f64 = 64.0;

/// The parts that run over texts; the vocabulary is not kept.
#[derive(serde::Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

/// Returns the decoder of a tokenizer whose steps are few and grow texts little.
pub fn check(tokenizer_json: &[u8]) -> Result<Option<Value>, String> {
    let parts: Parts = serde_json::from_slice(tokenizer_json).map_err(|error| error.to_string())?;
    let named = [
        ("normalizer", &parts.normalizer),
        ("pre_tokenizer", &parts.pre_tokenizer),
        ("post_processor", &parts.post_processor),
        ("decoder", &parts.decoder),
    ];
    for (name, part) in named {
        let mut cost = Cost { steps: 0, precompiled: 0, growth: 1.0 };
        part.iter().try_for_each(|part| cost.add(part)).map_err(|detail| format!("{name}: {detail}"))?;
    }
    Ok(parts.decoder)
}

struct Cost {
    steps: usize,
    /// Tables of replacements that are not looked into.
    precompiled: usize,
    growth: f64,
}

impl Cost {
    /// Adds every step in `part`; JSON is nested 128 deep at most.
    fn add(&mut self, part: &Value) -> Result<(), String> {
        match part {
            Value::Object(fields) => {
                self.step(part)?;
                fields.values().try_for_each(|field| self.add(field))
            }
            Value::Array(list) if list.len() > LIST_MAX => {
                Err(format!("a list of {} entries, more than {LIST_MAX}", list.len()))
            }
            Value::Array(list) => list.iter().try_for_each(|entry| self.add(entry)),
            _ => Ok(()),
        }
    }

    /// Adds one object. What it holds tells how it grows a text; old files leave out the type.
    fn step(&mut self, step: &Value) -> Result<(), String> {
        self.steps += usize::from(step.get("type").is_some());
        if self.steps > STEPS_MAX {
            return Err(format!("more than {STEPS_MAX} steps"));
        }
        let length = |text: &Value| text.as_str().map_or(0, str::len) as f64;
        if step.get("pattern").is_some() {
            // A regular expression may match one byte, or nothing in front of every byte.
            self.growth *= match length(&step["pattern"]["String"]) {
                0.0 => length(&step["content"]) + 1.0,
                pattern => (length(&step["content"]) / pattern).max(1.0),
            };
        }
        if let Some(pieces) = step["single"].as_array() {
            let sequences = pieces.iter().filter(|piece| piece.get("Sequence").is_some());
            self.growth *= (sequences.count() as f64).max(1.0);
        }
        self.precompiled += usize::from(step.get("precompiled_charsmap").is_some());
        if self.growth > GROWTH_MAX {
            return Err(format!("its steps can make a text more than {GROWTH_MAX} times longer"));
        }
        if self.precompiled > 1 {
            return Err("more than one precompiled table".to_owned());
        }
        Ok(())
    }
}

/// Runs what belongs to the tokenizers crate; its panics become errors.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Nothing of ours is changed by `work`, and the crate's caches hold whole entries only.
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| panic_text(&*payload))
}

/// What a panic said.
pub fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn chains_that_explode_are_refused() {
        let replace =
            |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let chain = |step: &Value, count: usize| {
            check(
                json!({"model": {}, "decoder": {"type": "Sequence", "decoders": vec![step; count]}})
                    .to_string()
                    .as_bytes(),
            )
        };
        let regex = json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "▁▁▁▁▁▁▁▁"});
        let template = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "A"}}]});
        let table = [
            (replace("a", "aa"), 26, "decoder: its steps can make a text more than 64 times longer"),
            (replace("a", &"a".repeat(16)), 10, "more than 64 times longer"),
            (replace("", "aaaaaaaa"), 2, "more than 64 times longer"),
            (regex, 3, "more than 64 times longer"),
            (template, 7, "more than 64 times longer"),
            (json!({"type": "Fuse"}), 32, "decoder: more than 32 steps"),
            (json!({"type": "Fuse"}), 65, "decoder: a list of 65 entries, more than 64"),
            (
                json!({"type": "Precompiled", "precompiled_charsmap": ""}),
                2,
                "more than one precompiled table",
            ),
        ];
        for (step, count, expected) in table {
            let message = chain(&step, count).unwrap_err();
            assert!(message.contains(expected), "{count} of {step:.80}: {message}");
        }
        assert!(chain(&replace("▁", " "), 20).is_ok());
        assert!(chain(&replace(" ", "▁"), 1).is_ok());
    }
}
