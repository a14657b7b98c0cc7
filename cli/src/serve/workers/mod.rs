//! The workers of a server: experts in other processes.
//!
//! | file | |
//! |---|---|
//! | [`settings`] | what an operator says of them |
//! | [`choice`] | whether there are any, and how experts are spread |
//! | [`fastest`] | which way of spreading them is predicted to be fastest |
//! | [`devices`] | where each of this machine computes: on which card, or on the CPU |
//! | [`share`] | what every worker of this machine gets: cores, threads, memory |
//! | [`supervisor`] | the processes: started, watched, started again, ended |
//! | [`port`] | the port that workers join, and who is let in |
//! | [`open`] | all of it together |
//! | [`wait`] | until all experts are somewhere |

pub mod choice;
pub mod devices;
pub mod fastest;
pub mod open;
pub mod port;
pub mod settings;
pub mod share;
pub mod supervisor;
pub mod wait;

pub use choice::Team;
pub use open::Workers;
pub use settings::WorkerSettings;
