//! Whether a server has workers, and how experts are spread over them: decided from what was asked and from what fits.

use gaterail_cluster::placement::{Mode, Parallel};

use super::settings::WorkerSettings;

/// The demo model shows what workers are; it needs none.
const DEMO_WORKERS: usize = 2;

/// The workers of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Team {
    /// Processes to start on this machine.
    pub spawn: usize,
    /// Workers to wait for before the first plan, this process included where it holds experts.
    pub expected: usize,
    pub mode: Mode,
}

/// What decides it.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Nobody named a model.
    pub demo: bool,
    /// The model has experts.
    pub sparse: bool,
    /// All of it fits in this process, and nobody wants it on cards.
    pub fits: bool,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Alone,
    /// Workers were mentioned, but are of no use; why is told.
    AloneBecause(&'static str),
    Team(Team),
}

impl Team {
    /// Processes of this machine.
    pub fn spawned(asked: &WorkerSettings, demo: bool) -> usize {
        asked.spawn.unwrap_or(if demo && asked.listen.is_none() { DEMO_WORKERS } else { 0 })
    }

    /// Whether there are to be workers; the error is a command line that makes no sense.
    pub fn choose(asked: &WorkerSettings, here: Circumstances) -> Result<Choice, String> {
        let spawn = Team::spawned(asked, here.demo);
        let auto = asked.parallel == Some(Parallel::Auto);
        if spawn == 0 && asked.listen.is_none() {
            return match asked.parallel {
                Some(Parallel::Fixed(mode)) => Err(format!(
                    "--parallel {mode} needs workers: --workers N here, or --cluster-listen HOST:PORT for others"
                )),
                Some(Parallel::Auto) if here.fits => Ok(Choice::AloneBecause(FITS)),
                _ if asked.local => Err("--local-experts needs workers beside: --workers N".to_string()),
                _ => Ok(Choice::Alone),
            };
        }
        if !here.sparse {
            let why = "the model has no experts, so that workers would have nothing to hold";
            return if auto || here.demo { Ok(Choice::AloneBecause(why)) } else { Err(why.to_string()) };
        }
        if auto && here.fits {
            return Ok(Choice::AloneBecause(FITS));
        }
        let mode = match asked.parallel {
            Some(Parallel::Fixed(mode)) => mode,
            // What is fastest is found when it is known how many there are.
            Some(Parallel::Auto) | None => Mode::Ep,
        };
        let own = usize::from(asked.local);
        let least = (spawn + own).max(1);
        let expected = asked.expected.or_else(|| mode.workers()).unwrap_or(least);
        if asked.listen.is_none() && expected > least {
            return Err(format!(
                "--workers {spawn} makes {least} that hold experts, and {expected} are waited for: --workers {}, or --cluster-listen HOST:PORT for others",
                expected - own
            ));
        }
        if mode.workers().is_some_and(|wanted| wanted > expected) {
            return Err(format!(
                "--parallel {mode} takes {} workers, not {expected}",
                mode.workers().unwrap_or(0)
            ));
        }
        Ok(Choice::Team(Team { spawn, expected, mode }))
    }
}

const FITS: &str =
    "all of it fits here, and workers would only add hops (--parallel ep or tp takes them anyway)";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn asked() -> WorkerSettings {
        WorkerSettings {
            spawn: None,
            devices: Vec::new(),
            parallel: None,
            copies: 1,
            replica_bytes: 0,
            rebalance_gain_min: 0.0,
            rebalance_every: Duration::ZERO,
            local: false,
            listen: None,
            token: None,
            tls: Default::default(),
            expected: None,
            join_wait: Duration::ZERO,
            silence_max: Duration::ZERO,
            plan_max: Duration::ZERO,
            shared_memory: true,
            overlap: crate::serve::workers::settings::Overlap::Auto,
            road: None,
        }
    }

    const MODEL: Circumstances = Circumstances { demo: false, sparse: true, fits: true };

    fn listen() -> Option<std::net::SocketAddr> {
        "127.0.0.1:1".parse().ok()
    }

    #[test]
    fn nobody_asked() {
        assert_eq!(Team::choose(&asked(), MODEL), Ok(Choice::Alone));
        let demo = Team::choose(&asked(), Circumstances { demo: true, ..MODEL });
        assert_eq!(demo, Ok(Choice::Team(Team { spawn: 2, expected: 2, mode: Mode::Ep })));
        let none = WorkerSettings { spawn: Some(0), ..asked() };
        assert_eq!(Team::choose(&none, Circumstances { demo: true, ..MODEL }), Ok(Choice::Alone));
    }

    #[test]
    fn as_many_as_were_asked_for() {
        let team = |asked: WorkerSettings| Team::choose(&asked, MODEL);
        let three = WorkerSettings { spawn: Some(3), ..asked() };
        assert_eq!(team(three.clone()), Ok(Choice::Team(Team { spawn: 3, expected: 3, mode: Mode::Ep })));
        let with_own = WorkerSettings { local: true, ..three.clone() };
        assert_eq!(team(with_own), Ok(Choice::Team(Team { spawn: 3, expected: 4, mode: Mode::Ep })));
        let cut = WorkerSettings { parallel: "tp".parse().ok(), ..three.clone() };
        assert_eq!(team(cut), Ok(Choice::Team(Team { spawn: 3, expected: 3, mode: Mode::Tp })));
        let others = WorkerSettings { listen: listen(), ..asked() };
        assert_eq!(team(others.clone()), Ok(Choice::Team(Team { spawn: 0, expected: 1, mode: Mode::Ep })));
        let grid = WorkerSettings { parallel: "ep:2,tp:2".parse().ok(), ..others };
        let mode = Mode::Mixed { ep: 2, tp: 2 };
        assert_eq!(team(grid), Ok(Choice::Team(Team { spawn: 0, expected: 4, mode })));
    }

    #[test]
    fn auto_takes_none_where_all_fits() {
        let auto = WorkerSettings { parallel: Some(Parallel::Auto), ..asked() };
        assert_eq!(Team::choose(&auto, MODEL), Ok(Choice::AloneBecause(FITS)));
        let demo = Circumstances { demo: true, ..MODEL };
        assert_eq!(Team::choose(&auto, demo), Ok(Choice::AloneBecause(FITS)));
        let auto = WorkerSettings { spawn: Some(2), ..auto };
        assert_eq!(Team::choose(&auto, MODEL), Ok(Choice::AloneBecause(FITS)));
        let tight = Circumstances { fits: false, ..MODEL };
        assert!(matches!(Team::choose(&auto, tight), Ok(Choice::Team(_))));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |asked: WorkerSettings, part: &str| {
            let error = Team::choose(&asked, MODEL).expect_err(part);
            assert!(error.contains(part), "{error}");
        };
        refused(WorkerSettings { parallel: "tp".parse().ok(), ..asked() }, "--workers N");
        refused(WorkerSettings { local: true, ..asked() }, "--local-experts");
        let grid = "ep:2,tp:2".parse().ok();
        refused(WorkerSettings { spawn: Some(3), parallel: grid, ..asked() }, "--workers 4");
        refused(
            WorkerSettings { spawn: Some(4), parallel: grid, expected: Some(3), ..asked() },
            "takes 4 workers",
        );
        refused(WorkerSettings { spawn: Some(2), expected: Some(3), ..asked() }, "--workers 3");
        let dense = Circumstances { sparse: false, ..MODEL };
        assert!(Team::choose(&WorkerSettings { spawn: Some(2), ..asked() }, dense).is_err());
    }
}
