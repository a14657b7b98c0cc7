//! What every worker of this machine gets: cores, threads, memory.

use crate::cores::Cores;

/// Buffers of calls, and the program itself.
pub const WORKER_RESERVE: u64 = 128 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// `None`: the system decides.
    pub cores: Option<Cores>,
    pub threads: usize,
    /// What experts may take, of the card's memory where there is one.
    pub memory: u64,
    /// `cuda:N`, which the worker computes on instead.
    pub card: Option<usize>,
}

/// A worker's card, with what experts may take of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardRoom {
    pub ordinal: usize,
    pub memory: u64,
}

/// The shares of workers of which some have cards, and of this process if it holds experts (`own`, the last). Cores and memory are
/// for those who compute with them.
pub fn shares_beside_cards(
    cards: &[Option<CardRoom>],
    own: bool,
    threads: Option<usize>,
    cores: &Cores,
    memory: u64,
) -> Vec<Share> {
    let here = cards.iter().filter(|card| card.is_none()).count() + usize::from(own);
    let mut here = shares(here, threads, cores, memory).into_iter();
    // There is a share for each that has no card.
    let given = cards.iter().map(|card| match card {
        Some(CardRoom { ordinal, memory }) => {
            Some(Share { cores: None, threads: 1, memory: *memory, card: Some(*ordinal) })
        }
        None => here.next(),
    });
    let mut given: Vec<Share> = given.flatten().collect();
    given.extend(here);
    given
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
        card: None,
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
        let card = |ordinal| Some(CardRoom { ordinal, memory: 7 });
        let mixed = shares_beside_cards(&[card(1), None, card(0)], true, None, &cores, 800);
        let text = |share: &Share| share.cores.as_ref().map(Cores::to_string).unwrap_or_default();
        let shown: Vec<_> =
            mixed.iter().map(|share| (text(share), share.threads, share.memory, share.card)).collect();
        let (first, second) = ("0,1,2,3".to_string(), "4,5,6,7".to_string());
        let on = |ordinal| (String::new(), 1, 7, Some(ordinal));
        assert_eq!(shown, [on(1), (first, 4, 400, None), on(0), (second, 4, 400, None)]);
        let many = all(9, None);
        assert_eq!((many[8].0.as_str(), many[8].1), ("0", 1));
    }
}
