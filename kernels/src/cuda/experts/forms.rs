//! Which experts the kernels compute. It follows from the forms of their matrices, so that it is known before any is loaded.

use std::fmt;

use super::plan_shared;
use crate::cuda::compile::Form;
use crate::cuda::error::CudaError;
use crate::packed::{Codes, PackedFormat};

/// In which form a matrix of an expert is run. Scales and offsets are each matrix' own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpertForm {
    /// With f32 activations, by the CPU alone; what its elements are, for people.
    Plain(String),
    Packed {
        codes: Codes,
        group: usize,
    },
}

impl From<PackedFormat> for ExpertForm {
    fn from(format: PackedFormat) -> ExpertForm {
        ExpertForm::Packed { codes: format.codes, group: format.group }
    }
}

impl fmt::Display for ExpertForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExpertForm::Plain(elements) => f.write_str(elements),
            ExpertForm::Packed { codes, group } => write!(f, "{codes} in groups of {group}"),
        }
    }
}

/// The experts of a layer, none of which has to be there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertsOutline {
    /// The forms of gates and ups, each once.
    pub gate_up: Vec<ExpertForm>,
    /// The forms of downs, each once.
    pub down: Vec<ExpertForm>,
    /// E
    pub experts: usize,
    /// The length of a canonical unit along F.
    pub unit: usize,
}

/// Whether a GPU with so much shared memory for a block computes them; if not, this names the form.
pub fn check_experts(outline: &ExpertsOutline, shared_bytes: usize) -> Result<(), CudaError> {
    check_count(outline.experts, shared_bytes)?;
    for forms in [&outline.gate_up, &outline.down] {
        for form in forms {
            match form {
                ExpertForm::Plain(elements) => return Err(plain(elements)),
                ExpertForm::Packed { codes, group } => Form::of_codes(*codes, *group)?,
            };
        }
        if let [first, other, ..] = &forms[..] {
            return Err(unlike(first, other));
        }
    }
    // The sums of a unit are kept for as many groups of downs.
    match outline.down.first() {
        Some(ExpertForm::Packed { group, .. })
            if !outline.unit.is_multiple_of(*group) || outline.unit > 4 * group =>
        {
            Err(CudaError::NoForm(format!("units of {} in groups of {group}", outline.unit)))
        }
        _ => Ok(()),
    }
}

/// Whether the plan of a call has room to count experts with numbers below `experts`.
pub(super) fn check_count(experts: usize, shared_bytes: usize) -> Result<(), CudaError> {
    match plan_shared(experts) > shared_bytes {
        true => Err(CudaError::NoForm(format!("{experts} experts in a layer"))),
        false => Ok(()),
    }
}

/// All gates and ups of a layer are computed by one kernel, and all downs.
pub(super) fn unlike(one: &ExpertForm, other: &ExpertForm) -> CudaError {
    CudaError::NoForm(format!("experts of one layer in {one} and in {other}"))
}

/// A GPU computes packed experts alone.
pub(crate) fn not_packed() -> CudaError {
    plain("f32, f16 or bf16")
}

fn plain(elements: &str) -> CudaError {
    CudaError::NoForm(format!("experts in {elements}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED: usize = 99 << 10;

    fn check(gate_up: &[&ExpertForm], down: &[&ExpertForm], unit: usize, expected: Option<&str>) {
        let forms = |forms: &[&ExpertForm]| forms.iter().copied().cloned().collect();
        let outline = ExpertsOutline { gate_up: forms(gate_up), down: forms(down), experts: 8, unit };
        let found = check_experts(&outline, SHARED).err().map(|error| error.to_string());
        let expected = expected.map(|what| format!("the kernels have no form for {what}"));
        assert_eq!(found, expected, "{outline:?}");
    }

    #[test]
    fn forms_are_known_by_name() {
        let packed = |codes, group| ExpertForm::Packed { codes, group };
        let (int4, int8) = (packed(Codes::INT4, 64), packed(Codes::Int8, 64));
        check(&[], &[], 128, None);
        check(&[&int4], &[&int8], 128, None);
        let mxfp4 = packed(Codes::MXFP4, 32);
        check(&[&mxfp4], &[&mxfp4], 128, None);
        let stored = packed(Codes::INT4, 128);
        check(&[&stored], &[&stored], 128, None);
        check(&[&int4], &[&ExpertForm::Plain("bf16".to_string())], 128, Some("experts in bf16"));
        check(&[&int4], &[&packed(Codes::Int8, 128)], 128, Some("8-bit codes in groups of 128"));
        check(&[&packed(Codes::MXFP4, 64)], &[], 128, Some("MXFP4 codes in groups of 64"));
        let both = "experts of one layer in 4-bit codes in groups of 64 and in 8-bit codes in groups of 64";
        check(&[], &[&int4, &int8], 128, Some(both));
        check(&[&int4], &[&int4], 512, Some("units of 512 in groups of 64"));
        let many = ExpertsOutline { experts: 1 << 16, ..ExpertsOutline::default() };
        let error = check_experts(&many, SHARED).expect_err("too many").to_string();
        assert_eq!(error, "the kernels have no form for 65536 experts in a layer");
    }
}
