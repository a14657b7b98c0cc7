//! The driver seam on a real GPU: CUDA's driver API through cudarc, kernels compiled by NVRTC.
//!
//! cudarc's bindings find their libraries at run time and panic where one is missing, so that `open` looks first. Its
//! safe layer is not used: it tracks events per buffer, which breaks capturing a stream into a graph.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

use super::compile::{Compiler, Form, Source};
use super::driver::{Card, Driver, Graph, Kernel, Launch, Mark, Properties, Queue};
use super::error::CudaError;

/// What the CUBINs of NVRTC 12 need.
const NEEDED_CUDA: (i32, i32) = (12, 0);

/// A GPU, in its primary context.
pub(super) struct RealDriver {
    context: Arc<Context>,
    properties: Properties,
    compiler: OnceLock<Result<Compiler, CudaError>>,
    modules: Mutex<HashMap<(Source, Option<Form>), Module>>,
    functions: Mutex<HashMap<Kernel, Function>>,
}

/// The primary context of a device, held as long as anything uses it.
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: contexts may be used from any thread that has made them current.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks where it must.
unsafe impl Sync for Context {}

impl Context {
    /// Makes the context this thread's, which every call of the driver wants.
    fn enter(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained until `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(call("cuCtxSetCurrent"))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `open`. There is nothing to do about a failure.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);
// SAFETY: a handle; the driver locks where it must.
unsafe impl Send for Module {}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);
// SAFETY: a handle; the driver locks where it must.
unsafe impl Send for Function {}

fn call(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| CudaError::Call { call, detail: describe(error) }
}

fn describe(error: DriverError) -> String {
    let text = |text: Result<&std::ffi::CStr, _>| {
        text.map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl RealDriver {
    /// The GPU `cuda:ordinal`.
    pub(super) fn open(ordinal: usize) -> Result<RealDriver, CudaError> {
        let count = count()?;
        if ordinal >= count {
            return Err(CudaError::NoDevice { ordinal, count });
        }
        let device = result::device::get(ordinal as i32).map_err(call("cuDeviceGet"))?;
        let properties = properties(ordinal, device)?;
        // SAFETY: the device exists; `Context` releases it.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(call("cuDevicePrimaryCtxRetain"))?;
        Ok(RealDriver {
            context: Arc::new(Context { device, context }),
            properties,
            compiler: OnceLock::new(),
            modules: Mutex::default(),
            functions: Mutex::default(),
        })
    }

    fn compiler(&self) -> Result<&Compiler, CudaError> {
        self.compiler.get_or_init(Compiler::find).as_ref().map_err(CudaError::clone)
    }

    fn function(&self, kernel: Kernel) -> Result<Function, CudaError> {
        if let Some(function) = locked(&self.functions).get(&kernel) {
            return Ok(*function);
        }
        self.context.enter()?;
        let module = self.module(kernel)?;
        let name = CString::new(kernel.symbol()).expect("no zero byte in a kernel's name");
        // SAFETY: the module stays loaded as long as the driver lives.
        let function = unsafe { result::module::get_function(module.0, name) }
            .map_err(|error| CudaError::Launch { kernel: kernel.symbol(), detail: describe(error) })?;
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function was just found.
        unsafe {
            result::function::set_function_attribute(function, attribute, self.properties.shared_bytes as i32)
        }
        .map_err(call("cuFuncSetAttribute"))?;
        locked(&self.functions).insert(kernel, Function(function));
        Ok(Function(function))
    }

    fn module(&self, kernel: Kernel) -> Result<Module, CudaError> {
        let mut modules = locked(&self.modules);
        let key = (kernel.source, kernel.form);
        if let Some(module) = modules.get(&key) {
            return Ok(*module);
        }
        let cubin = self.compiler()?.cubin(kernel.source, kernel.form, &self.properties.architecture)?;
        // SAFETY: a CUBIN, which names its own length.
        let module = unsafe { result::module::load_data(cubin.as_ptr().cast::<c_void>()) }
            .map_err(call("cuModuleLoadData"))?;
        modules.insert(key, Module(module));
        Ok(Module(module))
    }
}

/// The GPUs of this machine, none of which is opened; in the place of one that no kernel runs on, why.
pub fn cards() -> Result<Vec<Result<Card, CudaError>>, CudaError> {
    let card = |ordinal| {
        let device = result::device::get(ordinal as i32).map_err(call("cuDeviceGet"))?;
        let mut id = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: the device exists; the other is an out parameter.
        unsafe { sys::cuDeviceGetUuid_v2(&mut id, device) }.result().map_err(call("cuDeviceGetUuid"))?;
        let id = id.bytes.iter().map(|&byte| format!("{:02x}", byte as u8)).collect();
        Ok(Card { id, properties: properties(ordinal, device)? })
    };
    Ok((0..count()?).map(card).collect())
}

/// How many GPUs the driver shows; the error says what is wrong with the driver.
fn count() -> Result<usize, CudaError> {
    // SAFETY: only looks for the library.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the library is there, and this call needs no initialisation.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(call("cuDriverGetVersion"))?;
    let found = (version / 1000, version % 1000 / 10);
    if found < NEEDED_CUDA {
        return Err(CudaError::OldDriver { found, needed: NEEDED_CUDA });
    }
    match result::init() {
        Err(error) if error.0 == sys::cudaError_enum::CUDA_ERROR_NO_DEVICE => return Ok(0),
        other => other.map_err(call("cuInit"))?,
    }
    Ok(result::device::get_count().map_err(call("cuDeviceGetCount"))?.max(0) as usize)
}

fn properties(ordinal: usize, device: sys::CUdevice) -> Result<Properties, CudaError> {
    let attribute = |attribute| {
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(device, attribute) }.map_err(call("cuDeviceGetAttribute"))
    };
    let name = result::device::get_name(device).map_err(call("cuDeviceGetName"))?;
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let architecture = format!("sm_{major}{minor}");
    if major < 8 {
        return Err(CudaError::OldDevice { name, architecture });
    }
    Ok(Properties {
        ordinal,
        name,
        architecture,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        // SAFETY: the device exists.
        memory_bytes: unsafe { result::device::total_mem(device) }.map_err(call("cuDeviceTotalMem"))?,
        cache_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
    })
}

impl Driver for Arc<RealDriver> {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn free_bytes(&self) -> Result<usize, CudaError> {
        self.context.enter()?;
        let (free, _) = result::mem_get_info().map_err(call("cuMemGetInfo"))?;
        Ok(free)
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.context.enter()?;
        // SAFETY: `release` frees it.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Err(error) if error.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(CudaError::OutOfMemory { device: self.properties.name.clone(), bytes })
            }
            other => other.map_err(call("cuMemAlloc")),
        }
    }

    fn release(&self, address: u64) {
        if self.context.enter().is_ok() {
            // SAFETY: came from `allocate`. The call waits for what is queued. After a failure the memory is lost.
            let _ = unsafe { result::free_sync(address) };
        }
    }

    fn prepare(&self, kernels: &[Kernel]) -> Result<(), CudaError> {
        kernels.iter().try_for_each(|&kernel| self.function(kernel).map(|_| ()))
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>, CudaError> {
        self.context.enter()?;
        // Not the default stream, which cannot be captured and waits for all others.
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(call("cuStreamCreate"))?;
        Ok(Box::new(RealQueue { driver: self.clone(), stream }))
    }
}

/// A stream.
struct RealQueue {
    driver: Arc<RealDriver>,
    stream: sys::CUstream,
}

// SAFETY: a handle; the driver locks where it must.
unsafe impl Send for RealQueue {}
// SAFETY: as above.
unsafe impl Sync for RealQueue {}

impl Drop for RealQueue {
    fn drop(&mut self) {
        if self.driver.context.enter().is_ok() {
            // SAFETY: created in `open_queue`, destroyed once; what is queued still runs.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

/// An event; destroyed with its mark.
struct Event {
    context: Arc<Context>,
    event: sys::CUevent,
}

// SAFETY: a handle; the driver locks where it must.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: created in `record`, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

fn event(mark: &Mark) -> &Event {
    mark.0.downcast_ref().expect("a mark of this driver")
}

impl Queue for RealQueue {
    unsafe fn upload(&self, from: &[u8], to: u64) -> Result<(), CudaError> {
        self.driver.context.enter()?;
        // SAFETY: the caller's. Memory that is not pinned is staged before the call returns.
        unsafe { result::memcpy_htod_async(to, from, self.stream) }.map_err(call("cuMemcpyHtoDAsync"))
    }

    unsafe fn download(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        self.driver.context.enter()?;
        // SAFETY: the caller's; `to` outlives the copy, which is waited for.
        unsafe { result::memcpy_dtoh_async(to, from, self.stream) }.map_err(call("cuMemcpyDtoHAsync"))?;
        self.synchronize()
    }

    unsafe fn zero(&self, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.driver.context.enter()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(to, 0, bytes, self.stream) }.map_err(call("cuMemsetD8Async"))
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<(), CudaError> {
        let function = self.driver.function(launch.kernel)?;
        self.driver.context.enter()?;
        let [x, y, z] = launch.grid;
        let mut arguments = [launch.argument.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the caller's; the argument is copied before the call returns.
        unsafe {
            result::launch_kernel(
                function.0,
                (x, y, z),
                (launch.block, 1, 1),
                launch.shared_bytes as u32,
                self.stream,
                &mut arguments,
            )
        }
        .map_err(|error| CudaError::Launch { kernel: launch.kernel.symbol(), detail: describe(error) })
    }

    fn record(&self) -> Result<Mark, CudaError> {
        self.driver.context.enter()?;
        let event =
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(call("cuEventCreate"))?;
        let event = Event { context: self.driver.context.clone(), event };
        // SAFETY: both exist.
        unsafe { result::event::record(event.event, self.stream) }.map_err(call("cuEventRecord"))?;
        Ok(Mark(Box::new(event)))
    }

    fn wait(&self, mark: &Mark) -> Result<(), CudaError> {
        self.driver.context.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both exist.
        unsafe { result::stream::wait_event(self.stream, event(mark).event, flags) }
            .map_err(call("cuStreamWaitEvent"))
    }

    fn synchronize(&self) -> Result<(), CudaError> {
        self.driver.context.enter()?;
        // SAFETY: the stream exists.
        unsafe { result::stream::synchronize(self.stream) }.map_err(call("cuStreamSynchronize"))
    }

    fn capture(&self, work: &mut dyn FnMut()) -> Result<Box<dyn Graph>, CudaError> {
        self.driver.context.enter()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream exists and nothing captures it.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(call("cuStreamBeginCapture"))?;
        work();
        // SAFETY: capturing began above.
        let graph =
            unsafe { result::stream::end_capture(self.stream) }.map_err(call("cuStreamEndCapture"))?;
        let mut graph = RealGraph {
            driver: self.driver.clone(),
            stream: self.stream,
            graph,
            executable: std::ptr::null_mut(),
        };
        // SAFETY: the graph was just made; both handles are destroyed with it.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut graph.executable, graph.graph, 0) }
            .result()
            .map_err(call("cuGraphInstantiate"))?;
        Ok(Box::new(graph))
    }

    fn elapsed(&self, from: &Mark, to: &Mark) -> Option<Duration> {
        self.driver.context.enter().ok()?;
        // SAFETY: both exist.
        let milliseconds = unsafe { result::event::elapsed(event(from).event, event(to).event) }.ok()?;
        Some(Duration::from_secs_f64(f64::from(milliseconds) / 1e3))
    }
}

/// A graph of the stream that it was captured from.
struct RealGraph {
    driver: Arc<RealDriver>,
    stream: sys::CUstream,
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
}

// SAFETY: handles; a graph has one owner, which launches it from one thread at a time.
unsafe impl Send for RealGraph {}

impl Graph for RealGraph {
    unsafe fn launch(&self) -> Result<(), CudaError> {
        self.driver.context.enter()?;
        // SAFETY: instantiated in `capture`; what the kernels work on is the caller's.
        unsafe { result::graph::launch(self.executable, self.stream) }.map_err(call("cuGraphLaunch"))
    }
}

impl Drop for RealGraph {
    fn drop(&mut self) {
        if self.driver.context.enter().is_err() {
            return;
        }
        // SAFETY: made in `capture`, destroyed once. There is nothing to do about a failure.
        unsafe {
            if !self.executable.is_null() {
                let _ = result::graph::exec_destroy(self.executable);
            }
            let _ = result::graph::destroy(self.graph);
        }
    }
}
