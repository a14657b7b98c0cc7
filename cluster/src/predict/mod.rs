//! What a step costs, before anything is loaded: from a model's shape, the rates of the machines, and a placement.
//!
//! A layer: the trunk, the gate, rows out, the experts on every worker until the slowest is done, sums home. Which experts a
//! step hits is drawn from a seed, since the slowest of several is not what the mean says. All times are in seconds.

mod choose;
mod rates;
mod routing;
mod seen;
mod shape;
mod step;

pub use choose::{Verdict, choose, compare};
pub use rates::{Compute, Cut, FEW_ROWS, Hop, Rates, Walked, WorkerRate, shared_finish};
pub use routing::{Drawn, Routing, expected_distinct};
pub use seen::{Seen, SeenLayer};
pub use shape::{LayerShape, Shape, Step};
pub use step::{Prediction, Term, Terms, Where, predict};
