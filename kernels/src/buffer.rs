//! A buffer of plain elements that belongs to a device.
//!
//! On the CPU it is memory aligned to a cache line, on a GPU the GPU's memory. Only operations (`crate::ops`) and the stream's copies touch what
//! is inside; code above this crate does not index into a buffer.

use crate::cuda::DeviceBuffer;
use crate::device::Device;
use crate::error::KernelError;

/// Elements that a device can hold: any bit pattern is a value.
pub trait Plain: bytemuck::Pod + Send + Sync {}
impl<T: bytemuck::Pod + Send + Sync> Plain for T {}

const LINE_BYTES: usize = 64;
/// Memory of this size or more is mapped for itself, so that it can lie in huge pages.
pub(crate) const MAPPED_MIN: usize = 4 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory whose first byte lies on a cache line.
pub(crate) struct AlignedVec<T> {
    pointer: std::ptr::NonNull<T>,
    len: usize,
}

// SAFETY: an AlignedVec owns its memory exclusively, like a Vec.
unsafe impl<T: Send> Send for AlignedVec<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: Sync> Sync for AlignedVec<T> {}

impl<T: Plain> AlignedVec<T> {
    pub(crate) fn try_zeros(len: usize) -> Option<AlignedVec<T>> {
        const { assert!(align_of::<T>() <= LINE_BYTES) };
        let bytes = len.checked_mul(size_of::<T>())?;
        let pointer = match bytes {
            MAPPED_MIN.. => map_zeros(bytes)?,
            // SAFETY: the layout has a size of at least 1.
            _ => std::ptr::NonNull::new(unsafe { std::alloc::alloc_zeroed(small_layout(bytes)) })?,
        };
        // Zeroed bytes are valid for any Plain type, whose alignment a cache line exceeds.
        Some(AlignedVec { pointer: pointer.cast(), len })
    }

    pub(crate) fn zeros(len: usize) -> AlignedVec<T> {
        AlignedVec::try_zeros(len).unwrap_or_else(|| panic!("no memory for {len} elements"))
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.pointer.as_ptr()
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: `pointer` is valid for `len` initialised elements for as long as self lives.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

fn small_layout(bytes: usize) -> std::alloc::Layout {
    std::alloc::Layout::from_size_align(bytes.max(1), LINE_BYTES).expect("less than MAPPED_MIN bytes")
}

/// Whole huge pages that the system fills with zeros when they are first touched, by whichever thread that is. The advice has
/// to come before: an allocator that writes the zeros itself (as `alloc_zeroed` does beyond 16 bytes of alignment) has
/// taken small pages by then. Only a hint: where it fails nothing changes.
fn map_zeros(bytes: usize) -> Option<std::ptr::NonNull<u8>> {
    let length = bytes.checked_next_multiple_of(HUGE_PAGE)?;
    let wide = length.checked_add(HUGE_PAGE)?;
    let (read_write, anonymous) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping; what lies before and after the aligned part of it is given back, and nobody has seen it.
    unsafe {
        let start = libc::mmap(std::ptr::null_mut(), wide, read_write, anonymous, -1, 0);
        if start == libc::MAP_FAILED {
            return None;
        }
        let before = (start as usize).next_multiple_of(HUGE_PAGE) - start as usize;
        let aligned = start.add(before);
        if before > 0 {
            libc::munmap(start, before);
        }
        libc::munmap(aligned.add(length), HUGE_PAGE - before);
        libc::madvise(aligned, length, libc::MADV_HUGEPAGE);
        std::ptr::NonNull::new(aligned as *mut u8)
    }
}

impl<T> Drop for AlignedVec<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        let pointer = self.pointer.as_ptr() as *mut u8;
        // SAFETY: this is how the memory was obtained; it was valid then.
        unsafe {
            match bytes {
                MAPPED_MIN.. => {
                    libc::munmap(pointer as *mut libc::c_void, bytes.next_multiple_of(HUGE_PAGE));
                }
                _ => std::alloc::dealloc(pointer, small_layout(bytes)),
            }
        }
    }
}

impl AsRef<[u8]> for AlignedVec<u8> {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// `len` elements on one device.
pub struct Buffer<T: Plain> {
    device: Device,
    memory: Memory<T>,
}

enum Memory<T: Plain> {
    Host(AlignedVec<T>),
    Cuda(DeviceBuffer<T>),
}

impl<T: Plain> Buffer<T> {
    /// Zeroed elements on `device`.
    pub fn zeros(device: &Device, len: usize) -> Result<Buffer<T>, KernelError> {
        let memory = match device {
            Device::Cpu(_) => {
                Memory::Host(AlignedVec::try_zeros(len).ok_or_else(|| KernelError::OutOfMemory {
                    op: "buffer",
                    device: device.to_string(),
                    bytes: len.saturating_mul(size_of::<T>()),
                })?)
            }
            Device::Cuda(cuda) => Memory::Cuda(DeviceBuffer::zeros(cuda, len)?),
        };
        Ok(Buffer { device: device.clone(), memory })
    }

    pub fn len(&self) -> usize {
        match &self.memory {
            Memory::Host(memory) => memory.len,
            Memory::Cuda(memory) => memory.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the CPU's kernels see. Panics for a GPU's buffer.
    pub(crate) fn host(&self) -> &[T] {
        match &self.memory {
            Memory::Host(memory) => memory.as_slice(),
            Memory::Cuda(_) => panic!("a kernel of the CPU on a buffer of {}", self.device),
        }
    }

    /// What the CPU's kernels write. Panics for a GPU's buffer.
    pub(crate) fn host_mut(&mut self) -> &mut [T] {
        match &mut self.memory {
            Memory::Host(memory) => memory.as_mut_slice(),
            Memory::Cuda(_) => panic!("a kernel of the CPU on a buffer of {}", self.device),
        }
    }

    /// What a GPU's kernels see. Panics for the CPU's buffer.
    pub(crate) fn cuda(&self) -> &DeviceBuffer<T> {
        match &self.memory {
            Memory::Host(_) => panic!("a kernel of a GPU on a buffer of {}", self.device),
            Memory::Cuda(memory) => memory,
        }
    }

    /// What a GPU's kernels write. Panics for the CPU's buffer.
    pub(crate) fn cuda_mut(&mut self) -> &mut DeviceBuffer<T> {
        match &mut self.memory {
            Memory::Host(_) => panic!("a kernel of a GPU on a buffer of {}", self.device),
            Memory::Cuda(memory) => memory,
        }
    }
}
