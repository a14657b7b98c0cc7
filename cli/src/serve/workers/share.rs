//! What every worker of this machine gets: cores, threads, memory.

use crate::cores::Cores;

/// Buffers of calls, and the program itself.
pub const WORKER_RESERVE: u64 = 128 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// `None`: the system decides.
    pub cores: Option<Cores>,
    pub threads: usize,
    /// What experts may take.
    pub memory: u64,
}

/// Equal shares for `workers` processes. They never have more threads than there are cores, unless there are more of them
/// than cores; the router's thread i and worker i share core i, and hand it over to each other.
pub fn shares(workers: usize, threads: Option<usize>, cores: &Cores, memory: u64) -> Vec<Share> {
    let all = cores.count().max(1);
    let each = (threads.unwrap_or(all).min(all) / workers.max(1)).max(1);
    // Who asks for fewer threads than cores shares the machine with others, and the system knows where there is room.
    let bound = threads.is_none_or(|threads| threads >= all);
    let share = |index| Share {
        cores: cores.share(index, each).filter(|_| bound),
        threads: each,
        memory: memory / workers.max(1) as u64,
    };
    (0..workers).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_never_exceed_the_cores() {
        let cores: Cores = "0-7".parse().unwrap();
        let all = |workers, threads| {
            let shares = shares(workers, threads, &cores, 800);
            let text = |share: &Share| share.cores.as_ref().map(Cores::to_string).unwrap_or_default();
            shares.iter().map(|share| (text(share), share.threads, share.memory)).collect::<Vec<_>>()
        };
        assert_eq!(all(2, None), [("0,1,2,3".into(), 4, 400), ("4,5,6,7".into(), 4, 400)]);
        assert_eq!(all(3, None)[2], ("4,5".into(), 2, 266));
        assert_eq!(all(2, Some(2)), [(String::new(), 1, 400), (String::new(), 1, 400)]);
        assert_eq!(all(2, Some(1))[1], (String::new(), 1, 400));
        let many = all(9, None);
        assert_eq!((many[8].0.as_str(), many[8].1), ("0", 1));
    }
}
