//! How often each token stands in a sequence, kept as it grows: penalties cost what was seen, not the vocabulary.

use std::collections::HashMap;

/// The tokens of one sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenCounts {
    seen: HashMap<u32, Count>,
}

/// Where one token stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// In the prompt.
    pub prompt: bool,
    /// Times in the output.
    pub output: u32,
}

impl TokenCounts {
    pub fn new(prompt: &[u32]) -> TokenCounts {
        let mut counts = TokenCounts::default();
        for token in prompt {
            counts.seen.entry(*token).or_default().prompt = true;
        }
        counts
    }

    /// Counts a token of the output.
    pub fn push(&mut self, token: u32) {
        self.seen.entry(token).or_default().output += 1;
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, Count)> + '_ {
        self.seen.iter().map(|(token, count)| (*token, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_and_output_are_counted_apart() {
        let mut counts = TokenCounts::new(&[3, 3, 5]);
        for token in [5, 7, 7] {
            counts.push(token);
        }
        let mut seen: Vec<_> =
            counts.iter().map(|(token, count)| (token, count.prompt, count.output)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(3, true, 0), (5, true, 1), (7, false, 2)]);
    }
}
