//! Views of f32 buffers as `[rows, heads, width]`, with strides: what operations take instead of loose lengths.

use crate::buffer::Buffer;
use crate::cuda::{DeviceBuffer, Strided};
use crate::device::Device;

/// Where the elements of a view lie in its buffer; all in elements.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub rows: usize,
    pub heads: usize,
    pub width: usize,
    pub offset: usize,
    pub row_stride: usize,
    pub head_stride: usize,
}

impl Layout {
    fn new(rows: usize, heads: usize, width: usize) -> Layout {
        let row_stride = heads.checked_mul(width).expect("a row of more elements than there are addresses");
        Layout { rows, heads, width, offset: 0, row_stride, head_stride: width }
    }

    fn columns(self, start: usize, width: usize) -> Layout {
        assert!(
            width <= self.width && start <= self.width - width,
            "columns {start}..+{width} of {}",
            self.width
        );
        Layout { width, offset: self.offset + start, ..self }
    }

    fn check(&self, len: usize) {
        if self.rows == 0 || self.heads == 0 || self.width == 0 {
            return;
        }
        let steps = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let last = steps(self.rows, self.row_stride)
            .and_then(|last| last.checked_add(steps(self.heads, self.head_stride)?))
            .and_then(|last| last.checked_add(self.offset)?.checked_add(self.width))
            .expect("a view of more elements than there are addresses");
        assert!(last <= len, "a view of {last} elements in a buffer of {len}");
    }

    fn strided(self, buffer: Option<&DeviceBuffer<f32>>) -> Strided<'_> {
        let buffer = buffer.expect("a kernel of a GPU on a buffer of the CPU");
        let Layout { rows, heads, width, offset, row_stride, head_stride } = self;
        Strided { buffer, rows, heads, width, offset, row_stride, head_stride }
    }

    #[inline(always)]
    pub(crate) fn at(&self, row: usize, head: usize) -> usize {
        self.offset + row * self.row_stride + head * self.head_stride
    }
}

/// A view to read.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The CPU's elements; empty for a GPU's.
    pub(crate) data: &'a [f32],
    pub(crate) at: Layout,
    cuda: Option<&'a DeviceBuffer<f32>>,
}

/// A view to write.
pub struct ViewMut<'a> {
    /// The CPU's elements; empty for a GPU's.
    pub(crate) data: &'a mut [f32],
    pub(crate) at: Layout,
    cuda: Option<&'a DeviceBuffer<f32>>,
}

impl<'a> View<'a> {
    /// `[rows, width]` from the front of a buffer.
    pub fn rows(buffer: &'a Buffer<f32>, rows: usize, width: usize) -> View<'a> {
        View::heads(buffer, rows, 1, width)
    }

    /// `[rows, heads, width]` from the front of a buffer.
    pub fn heads(buffer: &'a Buffer<f32>, rows: usize, heads: usize, width: usize) -> View<'a> {
        let at = Layout::new(rows, heads, width);
        at.check(buffer.len());
        match buffer.device() {
            Device::Cpu(_) => View { data: buffer.host(), at, cuda: None },
            Device::Cuda(_) => View { data: &[], at, cuda: Some(buffer.cuda()) },
        }
    }

    /// The columns `start..start + width` of every head.
    pub fn columns(self, start: usize, width: usize) -> View<'a> {
        View { at: self.at.columns(start, width), ..self }
    }

    pub fn layout(&self) -> Layout {
        self.at
    }

    /// For a GPU's kernels. Panics for the CPU's elements.
    pub(crate) fn strided(&self) -> Strided<'a> {
        self.at.strided(self.cuda)
    }

    #[inline(always)]
    pub(crate) fn slice(&self, row: usize, head: usize) -> &'a [f32] {
        let start = self.at.at(row, head);
        &self.data[start..start + self.at.width]
    }
}

impl<'a> ViewMut<'a> {
    pub fn rows(buffer: &'a mut Buffer<f32>, rows: usize, width: usize) -> ViewMut<'a> {
        ViewMut::heads(buffer, rows, 1, width)
    }

    pub fn heads(buffer: &'a mut Buffer<f32>, rows: usize, heads: usize, width: usize) -> ViewMut<'a> {
        let at = Layout::new(rows, heads, width);
        at.check(buffer.len());
        match buffer.device() {
            Device::Cpu(_) => ViewMut { data: buffer.host_mut(), at, cuda: None },
            Device::Cuda(_) => ViewMut { data: &mut [], at, cuda: Some(buffer.cuda()) },
        }
    }

    /// The same view, lent for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { data: self.data, at: self.at, cuda: self.cuda }
    }

    pub fn columns(self, start: usize, width: usize) -> ViewMut<'a> {
        ViewMut { at: self.at.columns(start, width), ..self }
    }

    pub fn layout(&self) -> Layout {
        self.at
    }

    /// For a GPU's kernels. Panics for the CPU's elements.
    pub(crate) fn strided(&self) -> Strided<'a> {
        self.at.strided(self.cuda)
    }

    /// For kernels whose threads write disjoint parts.
    pub(crate) fn shared(&mut self) -> SharedRows {
        SharedRows { pointer: self.data.as_mut_ptr(), at: self.at }
    }
}

/// A view that several threads write, each its own (row, head) or columns of it.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows {
    pointer: *mut f32,
    at: Layout,
}

// SAFETY: threads write disjoint elements only; `slice` puts that duty on its caller.
unsafe impl Send for SharedRows {}
// SAFETY: as above.
unsafe impl Sync for SharedRows {}

impl SharedRows {
    /// The address of a column of (row, head), good for the whole view: no reference narrows it.
    #[inline(always)]
    pub(crate) fn pointer(&self, row: usize, head: usize, column: usize) -> *mut f32 {
        assert!(row < self.at.rows && head < self.at.heads && column < self.at.width, "outside the view");
        // SAFETY: inside the view, which was checked against its buffer.
        unsafe { self.pointer.add(self.at.at(row, head) + column) }
    }

    /// The columns `start..start+width` of (row, head).
    ///
    /// # Safety
    /// No two threads may hold overlapping slices, and the view's borrow must outlive the use.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, row: usize, head: usize, start: usize, width: usize) -> &mut [f32] {
        assert!(
            row < self.at.rows && head < self.at.heads && start + width <= self.at.width,
            "outside the view"
        );
        // SAFETY: inside the view, which was checked against its buffer; disjointness is the caller's duty.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(self.at.at(row, head) + start), width) }
    }
}

/// Elements that several threads write, each its own range.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<T> {
    pointer: *mut T,
    len: usize,
}

// SAFETY: threads write disjoint ranges only; `range` puts that duty on its caller.
unsafe impl<T: Send> Send for SharedSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<T> {}

impl<T> SharedSlice<T> {
    pub(crate) fn new(slice: &mut [T]) -> SharedSlice<T> {
        SharedSlice { pointer: slice.as_mut_ptr(), len: slice.len() }
    }

    /// The address of an element, good for the whole slice.
    #[inline(always)]
    pub(crate) fn pointer(&self, index: usize) -> *mut T {
        assert!(index < self.len, "element {index} of {}", self.len);
        // SAFETY: inside the slice.
        unsafe { self.pointer.add(index) }
    }

    /// # Safety
    /// No two threads may hold overlapping ranges, and the slice's borrow must outlive the use.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.len, "range {start}..+{len} of {}", self.len);
        // SAFETY: inside the slice; disjointness is the caller's duty.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), len) }
    }
}
