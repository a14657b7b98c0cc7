//! The kernels' sources, and NVRTC: source -> CUBIN for one architecture, kept in the user's cache folder.
//!
//! The key of a kept CUBIN is a hash of all that it depends on: source, headers, options and architecture; each version of
//! NVRTC keeps its own. What cannot be read or written there is compiled again: the cache is a convenience, and a need
//! only where there is no NVRTC.

use std::ffi::{CStr, CString, c_char};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use cudarc::nvrtc::sys as nvrtc;
use sha2::{Digest, Sha256};

use super::error::CudaError;
use crate::packed::{Codes, PackedFormat};

/// A file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    Quantize,
    RmsNorm,
    Rope,
    Rows,
    Linear,
    Attention,
    Select,
    PackedLinear,
    ExpertsPlan,
    ExpertsGateUp,
    ExpertsDown,
    Sums,
    Peak,
}

/// The form of packed weights that a source is compiled for: CODES and GROUP of `packed.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Form {
    pub codes: u8,
    pub group: u16,
}

impl Form {
    /// All there are: the forms of ARITHMETIC.md, 8.
    pub const ALL: [Form; 6] = [
        Form { codes: 0, group: 32 },
        Form { codes: 0, group: 64 },
        Form { codes: 0, group: 128 },
        Form { codes: 1, group: 32 },
        Form { codes: 2, group: 32 },
        Form { codes: 2, group: 64 },
    ];

    /// The form that computes a format. A table in groups other than 32 has none, nor do 8-bit codes in groups of 128.
    pub fn of(format: PackedFormat) -> Result<Form, CudaError> {
        Form::of_codes(format.codes, format.group)
    }

    /// The same by what counts of a format.
    pub(super) fn of_codes(codes: Codes, group: usize) -> Result<Form, CudaError> {
        let number = match codes {
            Codes::INT4 => 0,
            Codes::Int4 { .. } => 1,
            Codes::Int8 => 2,
        };
        let has = |form: &&Form| form.codes == number && usize::from(form.group) == group;
        let form = Form::ALL.iter().find(has).copied();
        form.ok_or_else(|| CudaError::NoForm(format!("{codes} in groups of {group}")))
    }

    /// The bytes of a group of a panel's codes.
    pub(super) fn group_bytes(self) -> usize {
        usize::from(self.group) * if self.codes == 2 { 16 } else { 8 }
    }
}

/// All sources with their text.
pub fn sources() -> [(Source, &'static str, &'static str); 13] {
    macro_rules! text {
        ($name:literal) => {
            ($name, include_str!(concat!("../../cuda/", $name)))
        };
    }
    [
        (Source::Quantize, text!("quantize.cu")),
        (Source::RmsNorm, text!("rms_norm.cu")),
        (Source::Rope, text!("rope.cu")),
        (Source::Rows, text!("rows.cu")),
        (Source::Linear, text!("linear.cu")),
        (Source::Attention, text!("attention.cu")),
        (Source::Select, text!("select.cu")),
        (Source::PackedLinear, text!("packed_linear.cu")),
        (Source::ExpertsPlan, text!("experts_plan.cu")),
        (Source::ExpertsGateUp, text!("experts_gate_up.cu")),
        (Source::ExpertsDown, text!("experts_down.cu")),
        (Source::Sums, text!("sums.cu")),
        (Source::Peak, text!("peak.cu")),
    ]
    .map(|(source, (name, text))| (source, name, text))
}

impl Source {
    /// Whether it is compiled once per form.
    pub fn has_forms(self) -> bool {
        matches!(self, Source::PackedLinear | Source::ExpertsGateUp | Source::ExpertsDown)
    }
}

const HEADERS: [(&str, &str); 6] = [
    ("arithmetic.h", include_str!("../../cuda/arithmetic.h")),
    ("experts.h", include_str!("../../cuda/experts.h")),
    ("intrinsics.h", include_str!("../../cuda/intrinsics.h")),
    ("packed.h", include_str!("../../cuda/packed.h")),
    ("tiles.h", include_str!("../../cuda/tiles.h")),
    ("weights.h", include_str!("../../cuda/weights.h")),
];

/// The arithmetic's part: no contraction, no flushing, IEEE division and root. `ops/kernel-gate` passes the same.
const OPTIONS: [&str; 5] =
    ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// NVRTC, as far as this machine has it, and what was compiled before.
pub(super) struct Compiler {
    /// The library's; none where there is none.
    version: Option<(i32, i32)>,
    /// A folder per version of NVRTC.
    cache: Option<PathBuf>,
}

/// NVRTC compiles one program at a time, as its documentation has asked for in older versions.
static COMPILING: Mutex<()> = Mutex::new(());

/// Compiles every source in every form for an architecture into the user's cache folder; the number of sources. A machine
/// that gets the folder needs no NVRTC.
pub fn compile_all(architecture: &str) -> Result<usize, CudaError> {
    let compiler = Compiler::find()?;
    for (source, ..) in sources() {
        let forms = Form::ALL.map(Some);
        for form in if source.has_forms() { &forms[..] } else { &[None] } {
            compiler.cubin(source, *form, architecture)?;
        }
    }
    Ok(sources().len())
}

/// Whether kernels can be compiled for an architecture, or have been: what is missing is known before anything is loaded.
pub fn check_compiler(architecture: &str) -> Result<(), CudaError> {
    let compiler = Compiler::find()?;
    match compiler.version {
        Some(version) => check_architecture(version, architecture),
        // Which of them are for this architecture shows when they are looked for.
        None if compiler.folders().iter().any(|folder| folder.is_dir()) => Ok(()),
        None => Err(CudaError::NoCompiler),
    }
}

impl Compiler {
    /// Looks for the library; what it compiles is kept in the user's cache folder.
    pub(super) fn find() -> Result<Compiler, CudaError> {
        // SAFETY: only looks for the library.
        if !unsafe { nvrtc::is_culib_present() } {
            return Ok(Compiler { version: None, cache: cache_folder() });
        }
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is there; both are out parameters.
        check("nvrtcVersion", unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) })?;
        Ok(Compiler { version: Some((major, minor)), cache: cache_folder() })
    }

    /// The CUBIN of a source for an architecture such as `sm_90`: what this version has compiled before, else what any
    /// other has, else compiled now.
    pub(super) fn cubin(
        &self,
        source: Source,
        form: Option<Form>,
        architecture: &str,
    ) -> Result<Vec<u8>, CudaError> {
        let listed = sources().into_iter().find(|(listed, ..)| *listed == source);
        let (_, name, text) = listed.expect("every source is listed");
        let mut options: Vec<String> = OPTIONS.map(str::to_string).to_vec();
        options.push(format!("--gpu-architecture={architecture}"));
        if let Some(form) = form {
            options.push(format!("-DCODES={}", form.codes));
            options.push(format!("-DGROUP={}", form.group));
        }
        let key = key(text, &options);
        if let Some(cubin) = self.folders().iter().find_map(|folder| read_kept(&folder.join(&key))) {
            return Ok(cubin);
        }
        let cubin = self.compile(name, text, &options, architecture)?;
        if let Some(folder) = self.own_folder() {
            keep(&folder.join(key), &cubin);
        }
        Ok(cubin)
    }

    /// Where this version's are kept.
    fn own_folder(&self) -> Option<PathBuf> {
        let (major, minor) = self.version?;
        Some(self.cache.as_ref()?.join(format!("nvrtc-{major}.{minor}")))
    }

    /// All folders, this version's first.
    fn folders(&self) -> Vec<PathBuf> {
        let entries = self.cache.as_ref().and_then(|cache| std::fs::read_dir(cache).ok());
        let mut others: Vec<PathBuf> =
            entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        others.sort_unstable_by(|a, b| b.cmp(a));
        self.own_folder().into_iter().chain(others).collect()
    }

    fn compile(
        &self,
        name: &str,
        text: &str,
        options: &[String],
        architecture: &str,
    ) -> Result<Vec<u8>, CudaError> {
        let Some(version) = self.version else { return Err(CudaError::NoCompiler) };
        let _one = COMPILING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        check_architecture(version, architecture)?;
        let c_string = |text: &str| CString::new(text).expect("no zero byte in a source or option");
        let (text, name_c) = (c_string(text), c_string(name));
        let header_texts = HEADERS.map(|(_, text)| c_string(text));
        let header_names = HEADERS.map(|(name, _)| c_string(name));
        let texts = header_texts.each_ref().map(|text| text.as_ptr());
        let names = header_names.each_ref().map(|name| name.as_ptr());
        let options: Vec<CString> = options.iter().map(|option| c_string(option)).collect();
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program = Program(std::ptr::null_mut());
        // SAFETY: the strings end in zero and live until the program is destroyed, at the end of this function.
        check("nvrtcCreateProgram", unsafe {
            nvrtc::nvrtcCreateProgram(
                &mut program.0,
                text.as_ptr(),
                name_c.as_ptr(),
                HEADERS.len() as i32,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        // SAFETY: a program that was created; the options are as many as is said.
        let compiled =
            unsafe { nvrtc::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) };
        if compiled != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            return Err(CudaError::Compile {
                kernel: name.to_string(),
                architecture: architecture.to_string(),
                log: program.log(),
            });
        }
        let mut size = 0;
        // SAFETY: a compiled program; the buffer has the size that it asked for.
        unsafe {
            check("nvrtcGetCUBINSize", nvrtc::nvrtcGetCUBINSize(program.0, &mut size))?;
            let mut cubin = vec![0u8; size];
            check("nvrtcGetCUBIN", nvrtc::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()))?;
            Ok(cubin)
        }
    }
}

fn check_architecture(version: (i32, i32), architecture: &str) -> Result<(), CudaError> {
    let mut count = 0;
    // SAFETY: out parameters; the second call gets room for as many as the first one said.
    let known = unsafe {
        check("nvrtcGetNumSupportedArchs", nvrtc::nvrtcGetNumSupportedArchs(&mut count))?;
        let mut known = vec![0; count.max(0) as usize];
        check("nvrtcGetSupportedArchs", nvrtc::nvrtcGetSupportedArchs(known.as_mut_ptr()))?;
        known
    };
    if known.iter().any(|number| architecture == format!("sm_{number}")) {
        return Ok(());
    }
    Err(CudaError::OldCompiler { version, architecture: architecture.to_string() })
}

/// Destroys its program.
struct Program(nvrtc::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        let mut size = 0;
        // SAFETY: a program that was created; the buffer has the size that it asked for.
        unsafe {
            if nvrtc::nvrtcGetProgramLogSize(self.0, &mut size) != nvrtc::nvrtcResult::NVRTC_SUCCESS
                || size == 0
            {
                return "no log".to_string();
            }
            let mut log = vec![0u8; size];
            if nvrtc::nvrtcGetProgramLog(self.0, log.as_mut_ptr().cast()) != nvrtc::nvrtcResult::NVRTC_SUCCESS
            {
                return "no log".to_string();
            }
            CStr::from_bytes_until_nul(&log)
                .map_or_else(|_| "no log".to_string(), |log| log.to_string_lossy().into_owned())
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: created once, destroyed once; there is nothing to do about a failure.
            let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}

fn check(call: &'static str, result: nvrtc::nvrtcResult) -> Result<(), CudaError> {
    match result {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        error => Err(CudaError::Call { call, detail: format!("{error:?}") }),
    }
}

/// All that a CUBIN depends on but the compiler's version.
fn key(text: &str, options: &[String]) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(text.as_bytes());
    HEADERS.iter().for_each(|(name, text)| {
        part(name.as_bytes());
        part(text.as_bytes());
    });
    options.iter().for_each(|option| part(option.as_bytes()));
    let mut key = String::new();
    for byte in hash.finalize() {
        let _ = write!(key, "{byte:02x}");
    }
    key + ".cubin"
}

fn cache_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(home)?;
    Some(base.join("gaterail").join("kernels"))
}

/// A kept CUBIN, if it is whole: a file ends in the hash of what comes before.
fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = std::fs::read(path).ok()?;
    let hash = bytes.split_off(bytes.len().checked_sub(32)?);
    (Sha256::digest(&bytes).as_slice() == hash).then_some(bytes)
}

/// Writes beside and renames, so that no reader sees a half; another process writes the same bytes.
fn keep(path: &Path, cubin: &[u8]) {
    let Some(folder) = path.parent() else { return };
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let bytes = [cubin, Sha256::digest(cubin).as_slice()].concat();
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&beside, bytes))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_file_is_read_back_whole_or_not_at_all() {
        let folder = std::env::temp_dir().join(format!("gaterail-kept-{}", std::process::id()));
        let path = folder.join("a.cubin");
        assert_eq!(read_kept(&path), None);
        keep(&path, b"code");
        assert_eq!(read_kept(&path).as_deref(), Some(&b"code"[..]));
        let mut bytes = std::fs::read(&path).expect("the file");
        bytes[1] ^= 1;
        std::fs::write(&path, &bytes).expect("the file");
        assert_eq!(read_kept(&path), None);
        std::fs::write(&path, &bytes[..7]).expect("the file");
        assert_eq!(read_kept(&path), None);
        std::fs::remove_dir_all(&folder).expect("the folder");
    }

    #[test]
    fn the_key_depends_on_everything() {
        let options = |last: &str| vec!["--std=c++17".to_string(), last.to_string()];
        let kept = key("a", &options("sm_80"));
        assert_ne!(kept, key("b", &options("sm_80")));
        assert_ne!(kept, key("a", &options("sm_90")));
        assert_eq!(kept, key("a", &options("sm_80")));
    }

    #[test]
    fn without_nvrtc_what_was_carried_is_used() {
        let folder = std::env::temp_dir().join(format!("gaterail-carried-{}", std::process::id()));
        let with = |version| Compiler { version, cache: Some(folder.clone()) };
        let error = with(None).cubin(Source::Rope, None, "sm_90").expect_err("nothing there").to_string();
        assert!(error.starts_with("kernels cannot be compiled"), "{error}");
        let (_, _, text) =
            sources().into_iter().find(|(source, ..)| *source == Source::Rope).expect("a source");
        let mut options: Vec<String> = OPTIONS.map(str::to_string).to_vec();
        options.push("--gpu-architecture=sm_90".to_string());
        let kept = |version: (i32, i32)| {
            with(Some(version)).own_folder().expect("a folder").join(key(text, &options))
        };
        keep(&kept((12, 4)), b"older");
        assert_eq!(with(None).cubin(Source::Rope, None, "sm_90").expect("carried"), b"older");
        assert_eq!(with(Some((12, 9))).cubin(Source::Rope, None, "sm_90").expect("carried"), b"older");
        keep(&kept((12, 9)), b"own");
        assert_eq!(with(Some((12, 9))).cubin(Source::Rope, None, "sm_90").expect("kept"), b"own");
        assert!(with(None).cubin(Source::Rope, None, "sm_80").is_err(), "another architecture");
        std::fs::remove_dir_all(&folder).expect("the folder");
    }

    /// Where NVRTC is: `ops/kernel-gate/run.sh` runs it.
    #[test]
    #[ignore = "needs libnvrtc"]
    fn nvrtc_compiles_every_source_once_and_keeps_it() {
        let folder = std::env::temp_dir().join(format!("gaterail-nvrtc-{}", std::process::id()));
        let compiler = Compiler { cache: Some(folder.clone()), ..Compiler::find().expect("libnvrtc") };
        for (source, name, _) in sources() {
            let form = source.has_forms().then_some(Form::ALL[1]);
            let cubin =
                compiler.cubin(source, form, "sm_90").unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(cubin.starts_with(b"\x7fELF"), "{name}");
            let count = || {
                let own = compiler.own_folder().expect("a folder");
                std::fs::read_dir(own).expect("the cache").count()
            };
            let kept = count();
            assert_eq!(compiler.cubin(source, form, "sm_90").expect("kept"), cubin);
            assert_eq!(count(), kept);
        }
        let error = compiler.cubin(Source::Rope, None, "sm_10").expect_err("long gone").to_string();
        assert!(error.contains("does not know sm_10"), "{error}");
        let error = compiler.compile("wrong.cu", "KERNEL(", &[], "sm_90").expect_err("no kernel").to_string();
        assert!(error.starts_with("wrong.cu does not compile for sm_90:"), "{error}");
        std::fs::remove_dir_all(&folder).expect("the folder");
    }

    #[test]
    fn every_header_that_a_source_wants_is_there() {
        let texts = sources().map(|(_, name, text)| (name, text)).into_iter().chain(HEADERS);
        for (name, text) in texts {
            for line in text.lines().filter(|line| line.starts_with("#include")) {
                let wanted = line.split('"').nth(1).expect("a name in quotes");
                let known = HEADERS.iter().any(|(header, _)| *header == wanted);
                assert!(known || wanted == "shim/shim.h", "{name} includes {wanted}");
            }
        }
    }
}
