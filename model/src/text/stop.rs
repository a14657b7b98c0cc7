//! Stop strings. In: text as it grows, cut anywhere. Out: the text that is certain, and which string ended it.
//!
//! The answer does not depend on where the text is cut: the string that is complete first ends it, and of several that
//! are complete with the same byte the longest.

use super::error::TextError;

/// Stop strings of one request.
pub const STOPS_MAX: usize = 16;
/// Bytes of one stop string.
pub const STOP_BYTES_MAX: usize = 256;

/// Looks for stop strings in one growing text.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    stops: Vec<String>,
    include_stop: bool,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// Nothing more is taken once a stop string was found.
    stopped: Option<usize>,
}

/// What a piece of text led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text to pass on.
    pub emit: String,
    /// The stop string that was found, by its place in the request.
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// Fails on too many strings, and on one that is empty or too long.
    pub fn new(stops: &[String], include_stop: bool) -> Result<StopMatcher, TextError> {
        if stops.len() > STOPS_MAX {
            return Err(TextError::TooManyStops { count: stops.len() });
        }
        let wrong = |stop: &String| stop.is_empty() || stop.len() > STOP_BYTES_MAX;
        if let Some(index) = stops.iter().position(wrong) {
            return Err(TextError::StopLength { index, bytes: stops[index].len() });
        }
        Ok(StopMatcher { stops: stops.to_vec(), include_stop, held: String::new(), stopped: None })
    }

    /// Takes the next text.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome { emit: String::new(), stopped: self.stopped };
        }
        let unseen = self.held.len();
        self.held.push_str(text);
        if let Some((which, end)) = self.first_complete(unseen) {
            let keep = if self.include_stop { end } else { end - self.stops[which].len() };
            let mut emit = std::mem::take(&mut self.held);
            emit.truncate(keep);
            self.stopped = Some(which);
            return StopOutcome { emit, stopped: self.stopped };
        }
        let rest = self.held.split_off(self.held.len() - self.waiting());
        StopOutcome { emit: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The text that was held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that ends first behind byte `unseen` of the held text, and where it ends.
    fn first_complete(&self, unseen: usize) -> Option<(usize, usize)> {
        let text = self.held.as_bytes();
        (unseen + 1..=text.len()).find_map(|end| {
            let complete = |(_, stop): &(usize, &String)| text[..end].ends_with(stop.as_bytes());
            let longest = self
                .stops
                .iter()
                .enumerate()
                .filter(complete)
                .max_by_key(|(i, stop)| (stop.len(), usize::MAX - i));
            longest.map(|(which, _)| (which, end))
        })
    }

    /// Bytes at the end of the held text that can still become a stop string.
    fn waiting(&self) -> usize {
        let text = self.held.as_bytes();
        let longest = self.stops.iter().map(|stop| stop.len() - 1).max().unwrap_or(0).min(text.len());
        let can_become = |bytes: &usize| {
            self.stops
                .iter()
                .any(|stop| stop.len() > *bytes && stop.as_bytes().starts_with(&text[text.len() - bytes..]))
        };
        (1..=longest).rev().find(can_become).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(stops: &[&str], include: bool) -> StopMatcher {
        StopMatcher::new(&stops.iter().map(|stop| (*stop).to_owned()).collect::<Vec<_>>(), include).unwrap()
    }

    /// Everything that comes out of `text`, cut into pieces of `size` characters.
    fn run(stops: &[&str], include: bool, text: &str, size: usize) -> (String, Option<usize>) {
        let mut matcher = matcher(stops, include);
        let chars: Vec<char> = text.chars().collect();
        let mut all = String::new();
        for piece in chars.chunks(size) {
            let outcome = matcher.push(&piece.iter().collect::<String>());
            all.push_str(&outcome.emit);
        }
        all.push_str(&matcher.finish());
        (all, matcher.stopped)
    }

    #[test]
    fn the_answer_does_not_depend_on_the_cuts() {
        let table: [(&[&str], &str, &str, Option<usize>); 9] = [
            (&["END"], "one END two", "one ", Some(0)),
            (&["END"], "one EN", "one EN", None),
            (&["aab"], "aaaab!", "aa", Some(0)),
            (&["abcd", "bc"], "xabcd", "xa", Some(1)),
            (&["b", "ab"], "xaab", "xa", Some(1)),
            (&["\n\n", "</s>"], "a\nb</s\n\nc", "a\nb</s", Some(0)),
            (&["é🦀"], "aé🦀b", "a", Some(0)),
            (&["ab", "ab"], "ab", "", Some(0)),
            (&[], "anything", "anything", None),
        ];
        for (stops, text, expected, which) in table {
            for size in 1..=text.chars().count() {
                assert_eq!(
                    run(stops, false, text, size),
                    (expected.to_owned(), which),
                    "{stops:?} {text:?} by {size}"
                );
                let (with, _) = run(stops, true, text, size);
                assert_eq!(with, which.map_or(expected.into(), |which| expected.to_owned() + stops[which]));
            }
        }
    }

    #[test]
    fn only_what_can_become_a_stop_string_is_held_back() {
        let mut matcher = matcher(&["stop here", "###"], false);
        let mut push = |text| matcher.push(text).emit;
        assert_eq!(push("please s"), "please ");
        assert_eq!(push("to"), "");
        assert_eq!(push("rm ##"), "storm ");
        assert_eq!(push(" x"), "## x");
    }

    #[test]
    fn nothing_comes_after_a_stop() {
        let mut matcher = matcher(&["."], false);
        assert_eq!(matcher.push("a.b"), StopOutcome { emit: "a".into(), stopped: Some(0) });
        assert_eq!(matcher.push("c"), StopOutcome { emit: String::new(), stopped: Some(0) });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn limits_are_named() {
        let error = |stops: Vec<String>| StopMatcher::new(&stops, false).unwrap_err().to_string();
        assert_eq!(error(vec!["a".into(); 17]), "17 stop strings, more than 16");
        assert_eq!(error(vec!["a".into(), String::new()]), "stop string 1 has 0 bytes; 1 to 256 are allowed");
        assert_eq!(error(vec!["a".repeat(257)]), "stop string 0 has 257 bytes; 1 to 256 are allowed");
    }
}
