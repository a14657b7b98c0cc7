//! A prompt of so many tokens: random words, fitted with whoever counts.

use super::random::Random;
use super::words::{FILLER, WORDS};

/// Most times that one prompt is counted.
const TRIES_MAX: usize = 64;

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
    let mut words: Vec<&'static str> = Vec::new();
    add(&mut words, target.saturating_sub(base).max(1) as usize, random);
    let (mut nearest, mut best) = (words.clone(), Prompt { text: String::new(), tokens: u32::MAX });
    for _ in 0..TRIES_MAX {
        let text = joined(begin, &words);
        let tokens = count(&text)?;
        // One that is as near may lead on.
        if target.abs_diff(tokens) <= target.abs_diff(best.tokens) {
            (nearest, best) = (words.clone(), Prompt { text, tokens });
        }
        if tokens == target {
            break;
        }
        let cost = (f64::from(tokens.saturating_sub(base)) / words.len() as f64).max(0.5);
        let words_off = (f64::from(target.abs_diff(tokens)) / cost) as usize;
        match tokens > target {
            true if words_off >= 2 && words.len() > words_off => words.truncate(words.len() - words_off),
            false if words_off >= 2 => add(&mut words, words_off, random),
            _ => words = neighbour(&nearest, best.tokens > target, random),
        }
    }
    Ok(best)
}

/// Another word for one of them, or one more or fewer.
fn neighbour(words: &[&'static str], too_long: bool, random: &mut Random) -> Vec<&'static str> {
    let mut words = words.to_vec();
    match (random.below(2) == 0, too_long) {
        (true, false) => words.push(FILLER),
        (true, true) if words.len() > 1 => drop(words.pop()),
        _ => {
            let place = random.below(words.len());
            words[place] = WORDS[random.below(WORDS.len())];
        }
    }
    words
}

fn add(words: &mut Vec<&'static str>, count: usize, random: &mut Random) {
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

    /// Tokenizers of several kinds: a word a token, a token for every three letters, nine more for a template, and one for
    /// each byte, so that nothing costs one alone.
    #[test]
    fn prompts_have_exactly_the_length() {
        let by_word = |text: &str| text.split(' ').count() as u32;
        let by_letters = |text: &str| text.split(' ').map(|word| word.len().div_ceil(3) as u32).sum::<u32>();
        let template = |text: &str| 9 + by_letters(text);
        let bytes = |text: &str| text.len() as u32;
        type Count<'a> = &'a dyn Fn(&str) -> u32;
        let counts: [(&str, Count); 4] =
            [("words", &by_word), ("letters", &by_letters), ("template", &template), ("bytes", &bytes)];
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
                // A template alone is longer than that, and no word is shorter.
                if !(["template", "bytes"].contains(&name) && target < 10) {
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
