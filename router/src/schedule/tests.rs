//! Decisions as tables: a state on the left, the plan on the right.

use super::*;

/// Numbers of a state, in the words of the table.
struct Case {
    name: &'static str,
    limits: (usize, usize, usize),
    counters: &'static [u64],
    /// tenant, pending, short, held, flags: `p` paused, `l` every logit
    running: &'static [(usize, usize, usize, usize, &'static str)],
    /// tenant, pending, cost, flags, or `31 of 1`: so many pages are held by who runs at 1 alone
    waiting: &'static [(usize, usize, usize, &'static str)],
    pages: usize,
    plan: &'static str,
}

impl Case {
    fn view(&self) -> View {
        let (sequences, rows, logits) = self.limits;
        let running = self.running.iter().map(|&(tenant, pending, short, held, flags)| Running {
            tenant: TenantSlot(tenant),
            pending,
            every_logit: flags.contains('l'),
            short,
            held,
            paused: flags.contains('p'),
        });
        let waiting = self.waiting.iter().map(|&(tenant, pending, cost, flags)| Waiting {
            tenant: TenantSlot(tenant),
            pending,
            every_logit: flags.contains('l'),
            cost,
            shared: flags
                .split_once(" of ")
                .map(|(pages, with)| Shared { with: with.parse().unwrap(), pages: pages.parse().unwrap() }),
        });
        View {
            limits: StepLimits { sequences, rows, logits },
            counters: self.counters.to_vec(),
            running: running.collect(),
            waiting: waiting.collect(),
            pages: self.pages,
        }
    }
}

/// `-1 +0 r0:1 w0:31`: preempt who runs at 1, admit who waits at 0, a row for r0, 31 for w0.
fn text(plan: &Plan) -> String {
    let preempt = plan.preempt.iter().map(|at| format!("-{at}"));
    let admit = plan.admit.iter().map(|at| format!("+{at}"));
    let rows = plan.rows.iter().map(|share| match share.who {
        Who::Running(at) => format!("r{at}:{}", share.rows),
        Who::Waiting(at) => format!("w{at}:{}", share.rows),
    });
    preempt.chain(admit).chain(rows).collect::<Vec<_>>().join(" ")
}

const LIMITS: (usize, usize, usize) = (4, 32, 8);
const DECODES: (usize, usize, usize, usize, &str) = (0, 1, 0, 2, "");

fn check(cases: &[Case]) {
    for case in cases {
        assert_eq!(text(&schedule(&case.view())), case.plan, "{}", case.name);
    }
}

#[test]
fn decode_comes_first_and_prompts_get_what_is_left() {
    check(&[
        Case {
            name: "nobody",
            limits: LIMITS,
            counters: &[],
            running: &[],
            waiting: &[],
            pages: 9,
            plan: "",
        },
        Case {
            name: "one prompt gets all rows",
            limits: LIMITS,
            counters: &[0],
            running: &[],
            waiting: &[(0, 100, 2, "")],
            pages: 9,
            plan: "+0 w0:32",
        },
        Case {
            name: "decode, then the prompt that runs, then the one that waits",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 20, 0, 1, ""), DECODES],
            waiting: &[(0, 100, 2, "")],
            pages: 9,
            plan: "+0 r1:1 r0:20 w0:11",
        },
        Case {
            name: "every logit is bounded by their number",
            limits: LIMITS,
            counters: &[0],
            running: &[DECODES, (0, 20, 0, 1, "l"), (0, 20, 0, 1, "")],
            waiting: &[],
            pages: 9,
            // 8 logits: one decodes, seven rows of the prompt that wants all, none for the other.
            plan: "r0:1 r1:7",
        },
        Case {
            name: "a full hit is computed from its last token",
            limits: LIMITS,
            counters: &[0],
            running: &[],
            waiting: &[(0, 1, 1, "")],
            pages: 9,
            plan: "+0 w0:1",
        },
        Case {
            name: "who is paused gets no row",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 2, "p"), (0, 9, 0, 2, "p"), DECODES],
            waiting: &[],
            pages: 9,
            plan: "r2:1",
        },
    ]);
}

#[test]
fn who_has_had_least_is_served_next() {
    check(&[
        Case {
            name: "the rows of prompts",
            limits: LIMITS,
            counters: &[500, 100],
            running: &[(0, 100, 0, 2, ""), (1, 20, 0, 1, "")],
            waiting: &[],
            pages: 9,
            plan: "r1:20 r0:12",
        },
        Case {
            name: "the places, in turns while the counters are near",
            limits: LIMITS,
            counters: &[10, 0],
            running: &[],
            waiting: &[
                (0, 15, 1, ""),
                (0, 15, 1, ""),
                (0, 15, 1, ""),
                (1, 15, 1, ""),
                (1, 15, 1, ""),
                (1, 15, 1, ""),
            ],
            pages: 99,
            plan: "+3 +0 +4 +1 w3:15 w0:15 w4:2",
        },
        Case {
            name: "a tenant that runs nothing takes a place from the one that runs most, from its newest",
            limits: LIMITS,
            counters: &[900, 0, 900],
            running: &[DECODES, DECODES, DECODES, (2, 1, 0, 2, "")],
            waiting: &[(1, 5, 1, "")],
            pages: 9,
            plan: "-2 +0 r0:1 r1:1 r3:1 w0:5",
        },
        Case {
            name: "but not the last one of anybody",
            limits: (2, 32, 8),
            counters: &[900, 0, 900],
            running: &[DECODES, (2, 1, 0, 2, "")],
            waiting: &[(1, 5, 1, "")],
            pages: 9,
            plan: "r0:1 r1:1",
        },
        Case {
            name: "nor does one that runs something",
            limits: LIMITS,
            counters: &[900, 0],
            running: &[DECODES, DECODES, DECODES, (1, 1, 0, 2, "")],
            waiting: &[(1, 5, 1, "")],
            pages: 9,
            plan: "r0:1 r1:1 r2:1 r3:1",
        },
        Case {
            name: "one that does not read gives way to anybody",
            limits: LIMITS,
            counters: &[900],
            running: &[DECODES, (0, 1, 0, 2, "p"), DECODES, DECODES],
            waiting: &[(0, 5, 1, "")],
            pages: 9,
            plan: "-1 +0 r0:1 r2:1 r3:1 w0:5",
        },
    ]);
}

#[test]
fn nobody_gets_in_without_pages_for_all_of_it() {
    check(&[
        Case {
            name: "and one is left for everybody who runs",
            limits: LIMITS,
            counters: &[0],
            running: &[DECODES, DECODES],
            waiting: &[(0, 5, 3, "")],
            pages: 4,
            plan: "r0:1 r1:1",
        },
        Case {
            name: "which is then enough",
            limits: LIMITS,
            counters: &[0],
            running: &[DECODES, DECODES],
            waiting: &[(0, 5, 3, "")],
            pages: 5,
            plan: "+0 r0:1 r1:1 w0:5",
        },
        Case {
            name: "alone it may have all",
            limits: LIMITS,
            counters: &[0],
            running: &[],
            waiting: &[(0, 50, 3, "")],
            pages: 3,
            plan: "+0 w0:32",
        },
        Case {
            name: "nobody gets past the one who is next and has no pages",
            limits: LIMITS,
            counters: &[0, 9],
            running: &[(0, 1, 0, 2, ""), (1, 1, 0, 2, "")],
            waiting: &[(0, 50, 30, ""), (0, 5, 1, ""), (1, 5, 1, "")],
            pages: 9,
            plan: "r0:1 r1:1",
        },
        Case {
            name: "pages of one that does not read are there for others",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 5, "p")],
            waiting: &[(0, 5, 5, "")],
            pages: 1,
            plan: "-0 +0 w0:5",
        },
    ]);
}

#[test]
fn pages_that_are_shared_with_who_goes_are_counted_once() {
    check(&[
        Case {
            name: "they cost nothing while their holder stays",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 41, ""), (0, 1, 0, 32, "")],
            waiting: &[(0, 1408, 22, "31 of 1")],
            pages: 24,
            plan: "+0 r0:1 r1:1 w0:30",
        },
        Case {
            name: "who holds them goes for another tenant: who shares them has to wait",
            limits: LIMITS,
            counters: &[9, 0],
            running: &[(0, 1, 0, 41, ""), (0, 1, 0, 32, "")],
            waiting: &[(0, 1408, 22, "31 of 1"), (1, 890, 14, "")],
            pages: 13,
            plan: "-1 +1 r0:1 w1:31",
        },
        Case {
            name: "or has all of them",
            limits: LIMITS,
            counters: &[9, 0],
            running: &[(0, 1, 0, 41, ""), (0, 1, 0, 32, "")],
            waiting: &[(0, 400, 6, "18 of 1"), (1, 890, 14, "")],
            pages: 13,
            plan: "-1 +1 +0 r0:1 w1:31",
        },
        Case {
            name: "who holds them does not read and goes",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 3, ""), (0, 1, 0, 32, "p")],
            waiting: &[(0, 1700, 27, "31 of 1")],
            pages: 25,
            plan: "-1 r0:1",
        },
        Case {
            name: "two who share them take them once",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 9, "p")],
            waiting: &[(0, 90, 3, "8 of 0"), (0, 90, 3, "6 of 0")],
            pages: 5,
            plan: "-0 +0 w0:32",
        },
        Case {
            name: "with a page more there is room for both",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 9, "p")],
            waiting: &[(0, 90, 3, "8 of 0"), (0, 90, 3, "6 of 0")],
            pages: 6,
            plan: "-0 +0 +1 w0:32",
        },
    ]);
}

#[test]
fn when_pages_run_out_the_newest_of_the_largest_loses_its_own() {
    check(&[
        Case {
            name: "the newest",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 1, 2, ""), DECODES, DECODES],
            waiting: &[],
            pages: 0,
            plan: "-2 r0:1 r1:1",
        },
        Case {
            name: "the newest even if it is the one in need",
            limits: LIMITS,
            counters: &[0],
            running: &[DECODES, DECODES, (0, 1, 1, 2, "")],
            waiting: &[],
            pages: 0,
            plan: "-2 r0:1 r1:1",
        },
        Case {
            name: "of the tenant that holds most",
            limits: LIMITS,
            counters: &[0, 0],
            running: &[(1, 1, 1, 2, ""), (0, 1, 0, 9, ""), (1, 1, 0, 2, "")],
            waiting: &[],
            pages: 0,
            plan: "-1 r0:1 r2:1",
        },
        Case {
            name: "never the oldest",
            limits: LIMITS,
            counters: &[0, 0],
            running: &[(0, 1, 1, 90, ""), (1, 1, 1, 2, ""), (1, 1, 0, 2, "")],
            waiting: &[],
            pages: 0,
            plan: "-2 r0:1 r1:1",
        },
        Case {
            name: "one that does not read before anybody else, however old",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 0, 2, "p"), (0, 1, 1, 2, ""), DECODES],
            waiting: &[],
            pages: 0,
            plan: "-0 r1:1 r2:1",
        },
        Case {
            name: "as many as it takes: what is shared frees nothing",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 1, 2, ""), (0, 1, 0, 1, ""), (0, 1, 0, 0, "")],
            waiting: &[],
            pages: 0,
            plan: "-2 -1 r0:1",
        },
        Case {
            name: "a prompt that is being read, too",
            limits: LIMITS,
            counters: &[0],
            running: &[(0, 1, 1, 2, ""), (0, 90, 0, 3, "")],
            waiting: &[],
            pages: 0,
            plan: "-1 r0:1",
        },
    ]);
}

/// Whatever the state, a plan keeps to its limits and gives nobody two shares.
#[test]
fn plans_keep_to_their_limits() {
    let mut state = 7u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below.max(1)
    };
    for round in 0..20_000 {
        let tenants = 1 + next(4);
        let limits = StepLimits { sequences: 1 + next(6), rows: 6 + next(40), logits: 6 + next(10) };
        let running = (0..next(limits.sequences + 1)).map(|_| Running {
            tenant: TenantSlot(next(tenants)),
            pending: if next(3) == 0 { 1 + next(60) } else { 1 },
            every_logit: next(4) == 0,
            short: 0,
            held: next(5),
            paused: next(5) == 0,
        });
        let mut running: Vec<Running> = running.collect();
        running.iter_mut().filter(|running| running.pending == 1).for_each(|running| running.short = next(2));
        let waiting = (0..next(5)).map(|_| Waiting {
            tenant: TenantSlot(next(tenants)),
            pending: 1 + next(90),
            every_logit: next(4) == 0,
            cost: next(6),
            shared: (!running.is_empty() && next(2) == 0).then(|| {
                let with = next(running.len());
                Shared { with, pages: next(running[with].held + 1) }
            }),
        });
        let waiting = waiting.collect();
        let counters = (0..tenants).map(|_| next(200) as u64).collect();
        let view = View { limits, counters, running, waiting, pages: next(12) };
        let plan = schedule(&view);
        let context = format!("round {round}: {view:?} {plan:?}");
        let freed: usize = plan.preempt.iter().map(|&at| view.running[at].held).sum();
        let mut taken: usize = plan.admit.iter().map(|&at| view.waiting[at].cost).sum();
        // What those who go shared with those who come is taken once.
        taken += plan
            .preempt
            .iter()
            .map(|&gone| {
                let with = |at: &usize| view.waiting[*at].shared.filter(|shared| shared.with == gone);
                plan.admit.iter().filter_map(with).map(|shared| shared.pages).max().unwrap_or(0)
            })
            .sum::<usize>();
        let (mut rows, mut logits) = (0, 0);
        for (at, share) in plan.rows.iter().enumerate() {
            assert!(plan.rows[..at].iter().all(|other| other.who != share.who), "{context}");
            let (pending, every_logit) = match share.who {
                Who::Running(at) => {
                    assert!(!plan.preempt.contains(&at) && !view.running[at].paused, "{context}");
                    taken += view.running[at].short;
                    (view.running[at].pending, view.running[at].every_logit)
                }
                Who::Waiting(at) => {
                    assert!(plan.admit.contains(&at), "{context}");
                    (view.waiting[at].pending, view.waiting[at].every_logit)
                }
            };
            assert!(share.rows >= 1 && share.rows <= pending, "{context}");
            rows += share.rows;
            logits += if every_logit { share.rows } else { 1 };
        }
        assert!(rows <= limits.rows && logits <= limits.logits, "{context}");
        assert!(taken <= view.pages + freed, "{context}");
        let places = view.running.len() - plan.preempt.len() + plan.admit.len();
        assert!(places <= limits.sequences.max(view.running.len()), "{context}");
        // Nobody idles while the oldest that can go on has room to.
        let oldest = view.running.iter().position(|running| !running.paused && running.pending == 1);
        if let Some(oldest) = oldest.filter(|_| view.running.iter().all(|running| running.held > 0)) {
            let first = view.running.iter().position(|running| !running.paused) == Some(oldest);
            let has_row = plan.rows.iter().any(|share| share.who == Who::Running(oldest));
            let alone = view.running.len() == 1;
            assert!(!first || has_row || alone, "{context}");
        }
    }
}
