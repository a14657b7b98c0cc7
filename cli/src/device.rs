//! `--device` and `--threads`: where a model runs.

use gaterail_kernels::Device;

use crate::error::CliError;
use crate::machine;

/// A device of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
}

pub fn parse(text: &str) -> Result<DeviceArg, String> {
    let number = |ordinal: &str| ordinal.parse().ok().map(DeviceArg::Cuda);
    let device = match text {
        "auto" => Some(DeviceArg::Auto),
        "cpu" => Some(DeviceArg::Cpu),
        "cuda" => Some(DeviceArg::Cuda(0)),
        _ => text.strip_prefix("cuda:").and_then(number),
    };
    device.ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_string())
}

/// More threads than this are surely a mistake.
const THREADS_MAX: usize = 1024;

/// `--threads`.
pub fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=THREADS_MAX).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a number from 1 to {THREADS_MAX}")),
    }
}

impl DeviceArg {
    /// The device to run on. Whole models run on the CPU: `auto` means that, and who asks for a GPU learns what is wrong with
    /// it, or what is missing here.
    pub fn open(self, threads: Option<usize>) -> Result<Device, CliError> {
        match self {
            DeviceArg::Auto | DeviceArg::Cpu => Ok(machine::cpu(threads)?),
            DeviceArg::Cuda(ordinal) => {
                let device = Device::cuda(ordinal)?;
                Err(CliError::Refused(format!(
                    "{device} works, but whole models run on the CPU in this version: use --device cpu, and the GPU for \
                     experts (--workers 1 --worker-devices cuda:{ordinal})"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        assert_eq!(parse("auto"), Ok(DeviceArg::Auto));
        assert_eq!(parse("cpu"), Ok(DeviceArg::Cpu));
        assert_eq!(parse("cuda"), Ok(DeviceArg::Cuda(0)));
        assert_eq!(parse("cuda:3"), Ok(DeviceArg::Cuda(3)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
