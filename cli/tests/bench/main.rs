//! `gaterail bench` against a server whose every answer, delay and fault is written in the test.

mod compare;
mod fake;
mod faults;
mod figures;
mod load;
mod run;
