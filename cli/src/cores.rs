//! `--cores`: which cores a process runs on.

use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::CliError;

/// Cores by their numbers, each once, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(Vec<usize>);

impl Cores {
    /// Those that this process may use.
    pub fn allowed() -> Cores {
        let set = sched_getaffinity(None).unwrap_or_default();
        Cores((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// `count` cores for the one at `index` of several who share these; it goes round where there are not enough.
    pub fn share(&self, index: usize, count: usize) -> Option<Cores> {
        let mut cores: Vec<usize> = (0..count)
            .map(|at| self.0.get((index * count + at) % self.0.len().max(1)).copied())
            .collect::<Option<_>>()?;
        cores.sort_unstable();
        cores.dedup();
        Some(Cores(cores))
    }

    /// Binds the calling thread, and every thread that it starts from now on.
    pub fn bind(&self) -> Result<(), CliError> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|&core| set.set(core));
        sched_setaffinity(None, &set).map_err(|error| {
            CliError::Usage(format!("--cores {}: {error}; this process may use {}", self, Cores::allowed()))
        })
    }
}

/// `0,2-3`
impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Cores, String> {
        let expected =
            || format!("expected cores such as 0 or 0,2-3, with numbers below {}", CpuSet::MAX_CPU);
        let number =
            |text: &str| text.trim().parse().ok().filter(|&core| core < CpuSet::MAX_CPU).ok_or_else(expected);
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (number(first)?, number(last)?);
            if last < first {
                return Err(expected());
            }
            cores.extend(first..=last);
        }
        cores.sort_unstable();
        cores.dedup();
        Ok(Cores(cores))
    }
}

/// As it is read, one by one.
impl std::fmt::Display for Cores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cores: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.write_str(&cores.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read() {
        for (text, expected) in [("0", "0"), ("0,2-4", "0,2,3,4"), ("3,1,1-2", "1,2,3")] {
            assert_eq!(text.parse::<Cores>().map(|cores| cores.to_string()), Ok(expected.to_string()));
        }
        for text in ["", "a", "1-", "2-1", "-1", "0;1", "1024", "99999999999999999999"] {
            assert!(text.parse::<Cores>().is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_shared_out_and_go_round() {
        let share = |cores: &str, index, count| {
            cores.parse::<Cores>().unwrap().share(index, count).unwrap().to_string()
        };
        assert_eq!(share("0-3", 0, 2), "0,1");
        assert_eq!(share("0-3", 1, 2), "2,3");
        assert_eq!(share("4,6", 1, 1), "6");
        assert_eq!(share("4,6", 2, 1), "4");
        assert_eq!(share("4,6", 0, 3), "4,6");
        assert_eq!(Cores(Vec::new()).share(0, 1), None);
    }
}
