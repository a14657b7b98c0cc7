//! The walk over the layers: what is asked (`batch`), where it runs (`lane`), how far it is (`cursor`), and the seam at
//! which rows leave for their experts (`seam`).

mod attention;
mod batch;
mod cursor;
mod held;
mod hits;
mod lane;
mod local;
mod mlp;
mod recorded;
mod runner;
mod seam;
mod times;
mod workspace;

pub use batch::{Batch, Row};
pub use cursor::Cursor;
pub use held::{ExpertMath, LayerMath, RoutedRows};
pub use hits::{Hits, LayerHits};
pub use lane::{Lane, LaneId};
pub use local::LocalExperts;
pub use recorded::{Choice, Recorded};
pub use runner::{Runner, RunnerOptions};
pub use seam::{ActRows, ExpertLayer, Routing, StepError, walk};
pub use times::LaneTimes;
