//! What this machine has: memory, disk, cores.

use std::path::Path;
use std::time::Duration;

use gaterail_kernels::{CpuOptions, Device, KernelError, measure};

/// Bytes that one can take without swapping: what the system calls available, or what a control group leaves.
pub fn available_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let available = meminfo_bytes(&text, "MemAvailable")?;
    Some(control_group_left().map_or(available, |left| available.min(left)))
}

pub fn total_memory_bytes() -> Option<u64> {
    meminfo_bytes(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemTotal")
}

fn meminfo_bytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group of this process may still take (version 2, then version 1), page cache not counted.
fn control_group_left() -> Option<u64> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let cached = |path: &str, field: &str| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix(field)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let (limit, used, file) = match number("/sys/fs/cgroup/memory.max") {
        Some(limit) => {
            (limit, number("/sys/fs/cgroup/memory.current")?, cached("/sys/fs/cgroup/memory.stat", "file "))
        }
        None => (
            number("/sys/fs/cgroup/memory/memory.limit_in_bytes")?,
            number("/sys/fs/cgroup/memory/memory.usage_in_bytes")?,
            cached("/sys/fs/cgroup/memory/memory.stat", "total_cache "),
        ),
    };
    Some(limit.saturating_sub(used.saturating_sub(file)))
}

/// Free bytes of the disk that holds `path`, which need not exist yet.
pub fn free_disk_bytes(path: &Path) -> Option<u64> {
    let mut path = std::path::absolute(path).ok()?;
    loop {
        if let Ok(stat) = rustix::fs::statvfs(&path) {
            return stat.f_frsize.checked_mul(stat.f_bavail);
        }
        path = path.parent()?.to_path_buf();
    }
}

/// This machine's CPU with `threads` threads, or one for each core.
pub fn cpu(threads: Option<usize>) -> Result<Device, KernelError> {
    let options = CpuOptions::default();
    let threads = threads.unwrap_or(options.threads);
    // Binding threads to cores is right only where every core has one of ours.
    let pin = threads == options.threads;
    Device::cpu(CpuOptions { threads, pin, ..options })
}

/// Bytes per second that the CPU reads from memory, measured now; takes about a second.
pub fn read_bandwidth(device: &Device) -> Result<f64, KernelError> {
    const BYTES: usize = 256 << 20;
    measure::read_bandwidth(device, BYTES, Duration::from_millis(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_field() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   12345 kB\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable"), Some(12_641_280));
        assert_eq!(meminfo_bytes(text, "SwapTotal"), None);
    }

    #[test]
    fn a_path_that_does_not_exist_lies_on_its_parents_disk() {
        assert!(free_disk_bytes(Path::new("/tmp/no/such/folder")).is_some_and(|bytes| bytes > 0));
    }
}
