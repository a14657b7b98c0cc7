//! A prompt of so many tokens: random words, fitted with whoever counts.

use super::random::Random;
use super::words::{FILLER, WORDS};

/// Most times that one prompt is counted.
const TRIES_MAX: usize = 24;

/// A text, and how many tokens it was found to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    pub text: String,
    pub tokens: u32,
}

/// Words behind `begin` until the whole has `target` tokens, or as near as it gets. `count` says how many a text has.
pub fn fit<E>(
    begin: &str,
    target: u32,
    random: &mut Random,
    mut count: impl FnMut(&str) -> Result<u32, E>,
) -> Result<Prompt, E> {
    let base = if begin.is_empty() { 0 } else { count(begin)? };
    let mut words: Vec<&str> = Vec::new();
    let mut cost: f64 = 1.0;
    let mut best: Option<Prompt> = None;
    add(&mut words, f64::from(target.saturating_sub(base)).max(1.0) as usize, random);
    for _ in 0..TRIES_MAX {
        let text = joined(begin, &words);
        let tokens = count(&text)?;
        if best.as_ref().is_none_or(|best| target.abs_diff(tokens) < target.abs_diff(best.tokens)) {
            best = Some(Prompt { text, tokens });
        }
        if tokens == target || (words.is_empty() && tokens > target) {
            break;
        }
        cost = (f64::from(tokens.saturating_sub(base)) / words.len().max(1) as f64).max(cost.min(0.5));
        let words_off = f64::from(target.abs_diff(tokens)) / cost;
        if tokens > target {
            words.truncate(words.len() - (words_off as usize).clamp(1, words.len()));
        } else if words_off >= 2.0 {
            add(&mut words, words_off as usize - 1, random);
        } else {
            words.push(FILLER);
        }
    }
    // There was one try at least.
    Ok(best.expect("a first try"))
}

fn add(words: &mut Vec<&str>, count: usize, random: &mut Random) {
    words.extend((0..count).map(|_| WORDS[random.below(WORDS.len())]));
}

fn joined(begin: &str, words: &[&str]) -> String {
    match begin.is_empty() {
        true => words.join(" "),
        false => [&[begin], words].concat().join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokenizers of several kinds: a word a token, a token for every three letters, and two more for a template.
    #[test]
    fn prompts_have_exactly_the_length() {
        let by_word = |text: &str| text.split(' ').count() as u32;
        let by_letters = |text: &str| text.split(' ').map(|word| word.len().div_ceil(3) as u32).sum::<u32>();
        let template = |text: &str| 9 + by_letters(text);
        let counts: [(&str, &dyn Fn(&str) -> u32); 3] =
            [("words", &by_word), ("letters", &by_letters), ("template", &template)];
        for (name, count) in counts {
            for target in [1, 2, 9, 10, 64, 128, 1000, 4096] {
                let begin = if target >= 64 { "one two three" } else { "" };
                let mut calls = 0;
                let prompt = fit(begin, target, &mut Random::new(5, 0), |text| {
                    calls += 1;
                    Ok::<u32, ()>(count(text))
                });
                let prompt = prompt.expect("counted");
                assert!(prompt.text.starts_with(begin));
                assert_eq!(prompt.tokens, count(&prompt.text), "{name} {target}");
                // A template alone is longer than that.
                if !(name == "template" && target < 10) {
                    assert_eq!(prompt.tokens, target, "{name}");
                }
                assert!(calls <= TRIES_MAX + 1);
            }
        }
    }

    #[test]
    fn a_seed_gives_its_prompt() {
        let text = |seed| {
            fit("", 40, &mut Random::new(seed, 0), |text| Ok::<u32, ()>(text.split(' ').count() as u32))
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }
}
