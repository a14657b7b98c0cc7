//! Devices: the CPU, and GPUs.

use std::fmt;
use std::sync::Arc;

use crate::cuda::CudaDevice;
use crate::error::KernelError;
use crate::pool::Pool;

/// The vector instructions that the CPU's kernels use. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// 512-bit vectors (F, BW, DQ, VL, VNNI): Ice Lake, Zen 4 and later.
    Avx512,
    /// 256-bit vectors with FMA and F16C: the practical floor.
    Avx2,
    /// Plain Rust; exact, and slow where FMA is emulated.
    Portable,
}

impl Isa {
    /// The best that this machine has.
    pub fn detect() -> Isa {
        [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        match self {
            Isa::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Isa::Avx2 => avx2,
            Isa::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Isa::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2",
            Isa::Portable => "portable",
        })
    }
}

/// How the CPU computes.
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads, the caller's included.
    pub threads: usize,
    /// Whether thread i is bound to core i. Right for a server that owns its cores, wrong for tests.
    pub pin: bool,
    pub isa: Isa,
    /// The work, in steps of an inner loop, that is worth waking a thread for. Tests make it small, so that small
    /// shapes are shared out too; no result depends on it.
    pub grain: usize,
}

impl Default for CpuOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        CpuOptions { threads, pin: false, isa: Isa::detect(), grain: 8 * 1024 }
    }
}

/// Where buffers live and operations run.
#[derive(Clone)]
pub enum Device {
    Cpu(Arc<CpuDevice>),
    Cuda(Arc<CudaDevice>),
}

/// A CPU: its pool of threads and its instructions.
pub struct CpuDevice {
    pub(crate) pool: Pool,
    pub(crate) isa: Isa,
    grain: usize,
}

impl CpuDevice {
    /// How many parts an operation of `items` items and `work` elementary steps is worth: one for what is done before
    /// another thread wakes.
    pub(crate) fn parts_for(&self, items: usize, work: usize) -> usize {
        self.parts_within(items, work, 4)
    }

    /// The same with another bound on the parts of a thread, for items that differ in size.
    pub(crate) fn parts_within(&self, items: usize, work: usize, per_thread: usize) -> usize {
        let threads = self.pool.threads();
        if threads <= 1 || work < 2 * self.grain {
            return items.min(1);
        }
        items.min((work / self.grain).clamp(1, threads * per_thread))
    }
}

impl Device {
    /// A CPU device; fails where its threads cannot be started. Panics if `options.isa` is not available here.
    pub fn cpu(options: CpuOptions) -> Result<Device, KernelError> {
        assert!(options.isa.is_available(), "{} is not available on this machine", options.isa);
        assert!(options.grain > 0, "a grain of work");
        let pool = Pool::new(options.threads, options.pin).map_err(|error| KernelError::Device {
            op: "starting threads",
            detail: format!("{error} (of {} threads)", options.threads),
        })?;
        Ok(Device::Cpu(Arc::new(CpuDevice { pool, isa: options.isa, grain: options.grain })))
    }

    /// The GPU `cuda:ordinal`; the error says what is missing on this machine.
    pub fn cuda(ordinal: usize) -> Result<Device, KernelError> {
        Ok(Device::Cuda(CudaDevice::open(ordinal)?))
    }

    /// Threads of the CPU that work on one operation.
    pub fn threads(&self) -> usize {
        match self {
            Device::Cpu(cpu) => cpu.pool.threads(),
            Device::Cuda(_) => 1,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu(cpu) => write!(f, "CPU ({} threads, {})", cpu.pool.threads(), cpu.isa),
            Device::Cuda(cuda) => write!(f, "{cuda}"),
        }
    }
}
