//! What can be wrong with CUDA on a machine, in words for whoever set the machine up.

/// A fault of CUDA or of a GPU.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    #[error("no NVIDIA driver on this machine: libcuda.so.1 is not found")]
    NoDriver,
    #[error("the NVIDIA driver supports CUDA {}.{}, this build needs {}.{}", found.0, found.1, needed.0, needed.1)]
    OldDriver { found: (i32, i32), needed: (i32, i32) },
    #[error("cuda:{ordinal} asked for, {} found", devices(*count))]
    NoDevice { ordinal: usize, count: usize },
    #[error("{name} has architecture {architecture}, the kernels need sm_80 or later (Ampere, 2020)")]
    OldDevice { name: String, architecture: String },
    #[error(
        "kernels cannot be compiled: libnvrtc.so.12 is not found (it comes with the CUDA toolkit, and with the Python \
         package nvidia-cuda-nvrtc-cu12)"
    )]
    NoCompiler,
    #[error("NVRTC {}.{} does not know {architecture}; a newer one does", version.0, version.1)]
    OldCompiler { version: (i32, i32), architecture: String },
    #[error("{kernel} does not compile for {architecture}:\n{log}")]
    Compile { kernel: String, architecture: String, log: String },
    #[error("no memory for {bytes} bytes on {device}")]
    OutOfMemory { device: String, bytes: usize },
    #[error("the kernels have no form for {0}")]
    NoForm(String),
    /// What the driver reports, often of work that was queued before.
    #[error("{call}: {detail}")]
    Call { call: &'static str, detail: String },
    /// A kernel that could not be launched, or that failed.
    #[error("{kernel}: {detail}")]
    Launch { kernel: String, detail: String },
}

fn devices(count: usize) -> String {
    match count {
        1 => "1 device".to_string(),
        count => format!("{count} devices"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_is_missing() {
        let lines = [
            (CudaError::NoDevice { ordinal: 3, count: 1 }, "cuda:3 asked for, 1 device found"),
            (CudaError::NoDevice { ordinal: 0, count: 0 }, "cuda:0 asked for, 0 devices found"),
            (
                CudaError::OldDriver { found: (11, 4), needed: (12, 0) },
                "the NVIDIA driver supports CUDA 11.4, this build needs 12.0",
            ),
        ];
        for (error, line) in lines {
            assert_eq!(error.to_string(), line);
        }
    }
}
