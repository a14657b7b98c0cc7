//! How experts are spread over workers: whole (expert parallel), cut (tensor parallel), or cut within groups.

use std::fmt;
use std::str::FromStr;

/// How experts are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Whole experts, each on one worker.
    Ep,
    /// Every expert is cut over all workers.
    Tp,
    /// `ep` groups of `tp` workers: an expert is in one group, cut over its workers.
    Mixed { ep: usize, tp: usize },
}

/// What `--parallel` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parallel {
    /// What the prediction finds fastest.
    Auto,
    Fixed(Mode),
}

/// A mode that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is none of ep, tp, ep:N,tp:M and auto")]
pub struct ModeError(String);

impl Mode {
    /// How many workers it is meant for; `None` is any number.
    pub fn workers(self) -> Option<usize> {
        match self {
            Mode::Ep | Mode::Tp => None,
            Mode::Mixed { ep, tp } => Some(ep * tp),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mode::Ep => write!(f, "ep"),
            Mode::Tp => write!(f, "tp"),
            Mode::Mixed { ep, tp } => write!(f, "ep:{ep},tp:{tp}"),
        }
    }
}

impl fmt::Display for Parallel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Parallel::Auto => write!(f, "auto"),
            Parallel::Fixed(mode) => mode.fmt(f),
        }
    }
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Mode, ModeError> {
        let wrong = || ModeError(text.to_string());
        let degree = |part: Option<&str>| {
            let degree = part.and_then(|digits| digits.parse().ok()).filter(|n| (1..=DEGREE_MAX).contains(n));
            degree.ok_or_else(wrong)
        };
        match text {
            "ep" => Ok(Mode::Ep),
            "tp" => Ok(Mode::Tp),
            _ => {
                let (first, second) = text.split_once(',').ok_or_else(wrong)?;
                let (ep, tp) = if first.starts_with("ep") { (first, second) } else { (second, first) };
                Ok(Mode::Mixed { ep: degree(ep.strip_prefix("ep:"))?, tp: degree(tp.strip_prefix("tp:"))? })
            }
        }
    }
}

/// More is a slip of the finger.
const DEGREE_MAX: usize = 1024;

impl FromStr for Parallel {
    type Err = ModeError;

    fn from_str(text: &str) -> Result<Parallel, ModeError> {
        match text {
            "auto" => Ok(Parallel::Auto),
            _ => text.parse().map(Parallel::Fixed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_written() {
        for text in ["ep", "tp", "ep:2,tp:3", "auto"] {
            assert_eq!(text.parse::<Parallel>().unwrap().to_string(), text);
        }
        assert_eq!("tp:3,ep:2".parse(), Ok(Mode::Mixed { ep: 2, tp: 3 }));
        let wrong =
            ["", "EP", "ep:", "ep:2", "ep:2,", "ep:0,tp:2", "ep:2,ep:2", "ep:-1,tp:2", "ep:2,tp:9999"];
        for text in wrong {
            assert!(text.parse::<Parallel>().is_err(), "{text}");
        }
    }
}
