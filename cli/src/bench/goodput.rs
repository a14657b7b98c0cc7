//! Goodput: requests per second that kept what was promised.

use std::str::FromStr;

use serde_json::{Value, json};

use super::request::Answer;

/// Most that each may take, in milliseconds; what is not named is not promised.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Promise {
    pub ttft: Option<f64>,
    pub tpot: Option<f64>,
    pub e2el: Option<f64>,
}

/// One of them: `ttft:500`.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    name: String,
    ms: f64,
}

impl FromStr for Term {
    type Err = String;

    fn from_str(text: &str) -> Result<Term, String> {
        let wrong = || format!("`{text}` is none of ttft:MS, tpot:MS and e2el:MS");
        let (name, ms) = text.split_once(':').ok_or_else(wrong)?;
        let ms = ms.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms >= 0.0).ok_or_else(wrong)?;
        let known = ["ttft", "tpot", "e2el"].contains(&name);
        known.then(|| Term { name: name.to_string(), ms }).ok_or_else(wrong)
    }
}

impl Promise {
    pub fn of(terms: &[Term]) -> Option<Promise> {
        let ms = |name: &str| terms.iter().rev().find(|term| term.name == name).map(|term| term.ms);
        (!terms.is_empty()).then(|| Promise { ttft: ms("ttft"), tpot: ms("tpot"), e2el: ms("e2el") })
    }

    /// Whether an answer kept it; `None` if that cannot be known. One token has no time per further token.
    pub fn kept(&self, answer: &Answer) -> Option<bool> {
        let within = |limit: Option<f64>, seconds: f64| limit.is_none_or(|ms| seconds * 1e3 <= ms);
        if self.tpot.is_some() && answer.output.count().is_none() {
            return None;
        }
        Some(
            within(self.ttft, answer.ttft)
                && within(self.tpot, answer.tpot().unwrap_or(0.0))
                && within(self.e2el, answer.e2el),
        )
    }

    pub fn json(&self) -> Value {
        json!({"ttft": self.ttft, "tpot": self.tpot, "e2el": self.e2el})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::request::OutputTokens;

    #[test]
    fn a_promise_is_kept_in_all_its_terms() {
        // 11 tokens: 100 ms, then 500 ms for ten of them.
        let answer = Answer { ttft: 0.1, e2el: 0.6, output: OutputTokens::Usage(11), ..Answer::default() };
        for (text, kept) in [
            ("ttft:100", true),
            ("ttft:99", false),
            ("tpot:50.001", true),
            ("tpot:49", false),
            ("e2el:600", true),
            ("e2el:599", false),
            ("ttft:100 tpot:51 e2el:600", true),
            ("ttft:100 tpot:49 e2el:600", false),
        ] {
            let terms: Vec<Term> = text.split(' ').map(|term| term.parse().expect("a term")).collect();
            assert_eq!(Promise::of(&terms).expect("terms").kept(&answer), Some(kept), "{text}");
        }
        let terms = ["tpot:50".parse().expect("a term")];
        let promise = Promise::of(&terms).expect("terms");
        assert_eq!(promise.kept(&Answer::default()), None, "nobody knows the tokens");
        let one = Answer { output: OutputTokens::Usage(1), ..answer };
        assert_eq!(promise.kept(&one), Some(true));
        for bad in ["ttft", "ttft:x", "ttft:-1", "itl:5", "tpot:inf"] {
            assert!(bad.parse::<Term>().is_err(), "{bad}");
        }
    }
}
