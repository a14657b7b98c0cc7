//! The CUDA kernels on the CPU: the driver seam of `gaterail_kernels::cuda` over `kernels/cuda/shim`.
//!
//! The same `.cu` files, compiled as C++, one fiber per CUDA thread; the launchers above the seam are the ones that run
//! on a GPU. Memory that is not initialised reads as a pattern, and has guards at both ends. Speed means nothing here.

pub mod cases;

use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use gaterail_kernels::cuda::{CudaDevice, CudaError, Driver, Graph, Kernel, Launch, Mark, Properties, Queue};

/// Before and behind what was asked for. The sanitizer has its own, and sees reads too.
const GUARD: usize = if cfg!(sanitized) { 0 } else { 256 };
const GUARD_BYTE: u8 = 0xc3;
/// As f32 a NaN, as integers negative.
const FRESH_BYTE: u8 = 0xff;

#[repr(C)]
struct ShimLaunch {
    name: *const c_char,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: usize,
    arguments: *mut *mut c_void,
    seed: u64,
}

unsafe extern "C" {
    fn shim_has_kernel(name: *const c_char) -> bool;
    fn shim_launch(launch: *const ShimLaunch) -> *const c_char;
}

/// A device that is none.
pub struct Shim {
    state: Arc<State>,
    properties: Properties,
}

struct State {
    /// Of every launch: the order of threads, and when copies land. 0: in order, each thread as far as it gets.
    seed: u64,
    launches: AtomicU64,
    /// While a graph is captured: what is launched, instead of running it.
    captured: Mutex<Option<Vec<Captured>>>,
    /// Bytes by address.
    memory: Mutex<HashMap<u64, usize>>,
}

impl Shim {
    /// A device whose launches are ordered by `seed`. Few multiprocessors, so that small shapes take several rounds.
    pub fn device(seed: u64) -> Arc<CudaDevice> {
        let properties = Properties {
            ordinal: 0,
            name: format!("shim (seed {seed})"),
            architecture: "none".to_string(),
            multiprocessors: 2,
            shared_bytes: 99 * 1024,
            memory_bytes: 1 << 30,
            cache_bytes: 0,
        };
        let state = Arc::new(State {
            seed,
            launches: AtomicU64::new(0),
            captured: Mutex::default(),
            memory: Mutex::default(),
        });
        CudaDevice::with_driver(Box::new(Shim { state, properties })).expect("the shim opens queues")
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The layout of an allocation with its guards.
fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.checked_add(2 * GUARD)?.max(1), 256).ok()
}

impl State {
    fn memory(&self) -> MutexGuard<'_, HashMap<u64, usize>> {
        locked(&self.memory)
    }

    /// Runs a launch.
    ///
    /// # Safety
    /// As `Queue::launch`.
    unsafe fn run(&self, launch: &Captured) -> Result<(), CudaError> {
        let count = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = if self.seed == 0 { 0 } else { self.seed.wrapping_mul(1 << 32).wrapping_add(count) | 1 };
        let symbol = launch.kernel.symbol();
        // SAFETY: the caller's.
        let outcome =
            unsafe { run(&symbol, launch.grid, launch.block, launch.shared_bytes, &launch.argument, seed) };
        outcome.map_err(|detail| CudaError::Launch { kernel: symbol, detail })
    }

    /// The first allocation whose guards were written to.
    fn broken(&self) -> Option<String> {
        let broken = |(&address, &bytes): (&u64, &usize)| {
            // SAFETY: listed allocations live, with their guards.
            let guard = |start: u64| unsafe { std::slice::from_raw_parts(start as *const u8, GUARD) };
            let front = guard(address - GUARD as u64).iter().any(|&byte| byte != GUARD_BYTE);
            let back = guard(address + bytes as u64).iter().any(|&byte| byte != GUARD_BYTE);
            let end = if front { "before the start" } else { "behind the end" };
            (front || back).then(|| format!("memory was written {end} of a buffer of {bytes} bytes"))
        };
        self.memory().iter().find_map(broken)
    }

    /// Panics unless the range lies in one allocation: a launcher's mistake, not the machine's.
    fn check(&self, address: u64, bytes: usize) {
        let inside = |(&start, &length): (&u64, &usize)| {
            address >= start && address + bytes as u64 <= start + length as u64
        };
        assert!(bytes == 0 || self.memory().iter().any(inside), "{bytes} bytes outside of all buffers");
    }
}

impl Driver for Shim {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        let taken: usize = self.state.memory().values().sum();
        Ok(self.properties.memory_bytes.saturating_sub(taken))
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        let out_of_memory = || CudaError::OutOfMemory { device: self.properties.name.clone(), bytes };
        let layout = layout(bytes).ok_or_else(out_of_memory)?;
        // SAFETY: the layout has a size; everything written is inside.
        let address = unsafe {
            let start = std::alloc::alloc(layout);
            if start.is_null() {
                return Err(out_of_memory());
            }
            start.write_bytes(GUARD_BYTE, layout.size());
            start.add(GUARD).write_bytes(FRESH_BYTE, bytes);
            start.add(GUARD) as u64
        };
        self.state.memory().insert(address, bytes);
        Ok(address)
    }

    fn release(&self, address: u64) {
        let Some(bytes) = self.state.memory().remove(&address) else { return };
        let layout = layout(bytes).expect("as it was allocated");
        // SAFETY: listed, so allocated with this layout and not yet freed.
        unsafe { std::alloc::dealloc((address - GUARD as u64) as *mut u8, layout) };
    }

    fn prepare(&self, kernels: &[Kernel]) -> Result<(), CudaError> {
        for kernel in kernels {
            let name = CString::new(kernel.symbol()).expect("no zero byte in a kernel's name");
            // SAFETY: a string that ends in zero.
            if !unsafe { shim_has_kernel(name.as_ptr()) } {
                return Err(CudaError::Launch {
                    kernel: kernel.symbol(),
                    detail: "no such kernel".to_string(),
                });
            }
        }
        Ok(())
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>, CudaError> {
        Ok(Box::new(ShimQueue(self.state.clone())))
    }
}

/// A launch, kept.
struct Captured {
    kernel: Kernel,
    grid: [u32; 3],
    block: u32,
    shared_bytes: usize,
    argument: Vec<u8>,
}

struct ShimGraph {
    state: Arc<State>,
    launches: Vec<Captured>,
}

impl Graph for ShimGraph {
    unsafe fn launch(&self) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        self.launches.iter().try_for_each(|launch| unsafe { self.state.run(launch) })
    }
}

/// A queue that runs everything at once.
struct ShimQueue(Arc<State>);

impl Queue for ShimQueue {
    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<(), CudaError> {
        self.0.check(to, from.len());
        // SAFETY: inside an allocation.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        self.0.check(from, to.len());
        // SAFETY: inside an allocation.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        self.synchronize()
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.0.check(to, bytes);
        // SAFETY: inside an allocation.
        unsafe { (to as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let &Launch { kernel, grid, block, shared_bytes, argument } = launch;
        let launch = Captured { kernel, grid, block, shared_bytes, argument: argument.to_vec() };
        if let Some(captured) = locked(&self.0.captured).as_mut() {
            captured.push(launch);
            return Ok(());
        }
        // SAFETY: the caller's.
        unsafe { self.0.run(&launch) }
    }

    fn capture(&self, work: &mut dyn FnMut()) -> Result<Box<dyn Graph>, CudaError> {
        *locked(&self.0.captured) = Some(Vec::new());
        work();
        let launches = locked(&self.0.captured).take().unwrap_or_default();
        Ok(Box::new(ShimGraph { state: self.0.clone(), launches }))
    }

    fn record(&self) -> Result<Mark, CudaError> {
        Ok(Mark(Box::new(())))
    }

    fn wait(&self, _mark: &Mark) -> Result<(), CudaError> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.0.broken().map_or(Ok(()), |detail| Err(CudaError::Call { call: "synchronize", detail }))
    }

    fn elapsed(&self, _from: &Mark, _to: &Mark) -> Option<Duration> {
        None
    }
}

/// Runs a kernel of the shim by name; what was wrong comes back in words.
///
/// # Safety
/// `argument` is the kernel's struct, with addresses that hold what it reads and writes.
pub unsafe fn run(
    name: &str,
    grid: [u32; 3],
    block: u32,
    shared_bytes: usize,
    argument: &[u8],
    seed: u64,
) -> Result<(), String> {
    let name = CString::new(name).expect("no zero byte in a kernel's name");
    // Aligned like the struct it is.
    let mut words: Vec<u64> = vec![0; argument.len().div_ceil(8)];
    // SAFETY: room for the bytes.
    unsafe { std::ptr::copy_nonoverlapping(argument.as_ptr(), words.as_mut_ptr().cast(), argument.len()) };
    let mut arguments = [words.as_mut_ptr().cast::<c_void>()];
    let launch = ShimLaunch {
        name: name.as_ptr(),
        grid,
        block: [block, 1, 1],
        shared_bytes,
        arguments: arguments.as_mut_ptr(),
        seed,
    };
    // SAFETY: all pointers live through the call; the rest is the caller's.
    let fault = unsafe { shim_launch(&launch) };
    if fault.is_null() {
        return Ok(());
    }
    // SAFETY: a string that lives until this thread's next launch.
    Err(unsafe { CStr::from_ptr(fault) }.to_string_lossy().into_owned())
}
