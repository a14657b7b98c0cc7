//! Groups of workers that hold an expert together, and who gets how much.

use super::job::Part;
use super::{Mode, Seat};

/// Workers over which an expert is cut.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Group {
    pub seats: Vec<usize>,
    /// Bytes a second of all.
    pub speed: f64,
}

impl Group {
    fn add(&mut self, seat: usize, speeds: &[f64]) {
        self.seats.push(seat);
        self.speed += speeds[seat];
    }
}

/// Speeds that can be divided by: who has not measured any is taken for as slow as the slowest.
pub(crate) fn speeds(seats: &[Seat]) -> Vec<f64> {
    let measured = |speed: f64| speed.is_finite() && speed > 0.0;
    let all = seats.iter().map(|seat| seat.read_bytes_per_second);
    let slowest = all.clone().filter(|&speed| measured(speed)).fold(f64::INFINITY, f64::min);
    let slowest = if slowest.is_finite() { slowest } else { 1.0 };
    all.map(|speed| if measured(speed) { speed } else { slowest }).collect()
}

/// What groups are made after.
#[derive(Clone, Copy)]
pub(super) struct Now<'a> {
    /// What is held of each copy of each expert.
    pub copies: &'a [Vec<Vec<Part>>],
    /// By seat: the same number for those who hold experts together; `None` for who holds nothing.
    pub together: &'a [Option<usize>],
    /// Whether anything may move that need not.
    pub balance: bool,
}

/// Who forms a group with whom; those who hold experts together stay together if the mode allows.
pub(super) fn groups(
    seats: &[Seat],
    speeds: &[f64],
    mode: Mode,
    copies: usize,
    Now { copies: now, together: first, balance }: Now<'_>,
) -> Vec<Group> {
    let wanted = match mode {
        Mode::Ep => seats.len(),
        Mode::Tp => copies,
        Mode::Mixed { ep, .. } => ep.max(copies),
    };
    let wanted = wanted.min(seats.len());
    let size_max = match mode {
        // After a death those who are left stay together, whatever they are then.
        _ if !balance => seats.len(),
        Mode::Ep => 1,
        Mode::Tp => seats.len(),
        Mode::Mixed { tp, .. } => tp.max(seats.len().div_ceil(wanted.max(1))),
    };
    let fresh = fresh(seats.len(), speeds, wanted);
    let together =
        |copy: &Vec<Part>| fresh.iter().any(|group| copy.iter().all(|part| group.seats.contains(&part.seat)));
    if now.iter().flatten().all(together) {
        return fresh;
    }
    let kept = kept(seats.len(), speeds, first, wanted, size_max);
    kept.filter(|kept| kept.len() >= copies.min(wanted)).unwrap_or(fresh)
}

/// The groups of now, with those who came: they fill the missing groups first, and then the slowest.
fn kept(
    seats: usize,
    speeds: &[f64],
    first: &[Option<usize>],
    wanted: usize,
    size_max: usize,
) -> Option<Vec<Group>> {
    let mut groups: Vec<(usize, Group)> = Vec::new();
    for (seat, of) in first.iter().enumerate() {
        let Some(of) = *of else { continue };
        let known = groups.iter().position(|(lead, _)| *lead == of);
        let at = known.unwrap_or(groups.len());
        if known.is_none() {
            groups.push((of, Group::default()));
        }
        groups[at].1.add(seat, speeds);
    }
    let groups: Vec<Group> = groups.into_iter().map(|(_, group)| group).collect();
    if groups.is_empty() {
        return None;
    }
    let mut groups = merged(groups, wanted).filter(|all| all.iter().all(|at| at.seats.len() <= size_max))?;
    for seat in (0..seats).filter(|&seat| first[seat].is_none()) {
        if groups.len() < wanted {
            groups.push(Group::default());
        }
        let slowest = groups.iter_mut().min_by(|a, b| a.speed.total_cmp(&b.speed))?;
        slowest.add(seat, speeds);
    }
    Some(groups)
}

/// At most so many groups: those that hold nothing together may become one.
fn merged(mut groups: Vec<Group>, wanted: usize) -> Option<Vec<Group>> {
    groups.sort_by(|a, b| b.seats.len().cmp(&a.seats.len()).then(b.speed.total_cmp(&a.speed)));
    let rest = groups.split_off(wanted.min(groups.len()));
    for group in rest {
        let smaller = |a: &&mut Group, b: &&mut Group| {
            a.seats.len().cmp(&b.seats.len()).then(a.speed.total_cmp(&b.speed))
        };
        let smallest = groups.iter_mut().min_by(smaller)?;
        smallest.seats.extend(group.seats);
        smallest.speed += group.speed;
    }
    groups.iter_mut().for_each(|group| group.seats.sort_unstable());
    groups.sort_by_key(|group| group.seats[0]);
    Some(groups)
}

/// Groups of even sizes, and of speeds as even as that allows.
fn fresh(seats: usize, speeds: &[f64], wanted: usize) -> Vec<Group> {
    let mut groups = vec![Group::default(); wanted];
    let mut order: Vec<usize> = (0..seats).collect();
    order.sort_by(|&a, &b| speeds[b].total_cmp(&speeds[a]));
    for (placed, seat) in order.into_iter().enumerate() {
        // Nobody gets another one before all have as many.
        let size = placed / wanted;
        let open = groups.iter_mut().filter(|group| group.seats.len() == size);
        let slowest = open.min_by(|a, b| a.speed.total_cmp(&b.speed));
        slowest.expect("a round has a place for each group").add(seat, speeds);
    }
    groups.iter_mut().for_each(|group| group.seats.sort_unstable());
    groups
}

/// Splits `sum` in proportion to `weights`, nobody above their cap; `None` if the caps do not allow it.
pub(super) fn proportional(weights: &[f64], caps: &[f64], sum: f64) -> Option<Vec<f64>> {
    const SLACK: f64 = 1e-9;
    let mut parts = vec![0.0; weights.len()];
    let mut open: Vec<usize> = (0..weights.len()).collect();
    let mut left = sum;
    loop {
        let weight: f64 = open.iter().map(|&at| weights[at]).sum();
        let fair = |at: usize| left * weights[at] / weight;
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|&&at| fair(at) >= caps[at]);
        if full.is_empty() {
            rest.iter().for_each(|&at| parts[at] = fair(at));
            return (!rest.is_empty() || left <= SLACK * sum).then_some(parts);
        }
        full.iter().for_each(|&at| parts[at] = caps[at]);
        left -= full.iter().map(|&at| caps[at]).sum::<f64>();
        open = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::proportional;

    #[test]
    fn shares_follow_weights_below_their_caps() {
        let none = [f64::INFINITY; 3];
        assert_eq!(proportional(&[1.0, 2.0, 1.0], &none, 8.0), Some(vec![2.0, 4.0, 2.0]));
        assert_eq!(proportional(&[1.0, 2.0, 1.0], &[9.0, 1.0, 9.0], 8.0), Some(vec![3.5, 1.0, 3.5]));
        assert_eq!(proportional(&[1.0, 1.0], &[1.0, 2.0], 3.0), Some(vec![1.0, 2.0]));
        assert_eq!(proportional(&[1.0, 1.0], &[1.0, 1.5], 3.0), None);
    }
}
