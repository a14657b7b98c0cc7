//! ARITHMETIC.md, 9, one value after the other.

/// Integers and scale of a group in int8.
pub fn int8_group(x: &[f32]) -> (Vec<i32>, f32) {
    let (e, finite) = extreme(x);
    if !finite {
        return (vec![0; x.len()], f32::NAN);
    }
    let scale = f16(e.abs() / 127.0);
    let r = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let w = x.iter().map(|x| (x * r).round_ties_even().clamp(-127.0, 127.0) as i32);
    (w.collect(), scale)
}

/// Integers and scale of a group in int4.
pub fn int4_group(x: &[f32]) -> (Vec<i32>, f32) {
    let (e, finite) = extreme(x);
    if !finite {
        return (vec![0; x.len()], f32::NAN);
    }
    let mut best: Option<(f32, Vec<i32>, f32)> = None;
    for s in [8.0f32, 7.5, 8.5, 7.0, 9.0, 6.5, 9.5, 6.0] {
        let scale = f16(-e / s);
        let r = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        let w: Vec<i32> = x.iter().map(|x| (x * r).round_ties_even().clamp(-8.0, 7.0) as i32).collect();
        let errors: Vec<f32> = x.iter().zip(&w).map(|(x, &w)| (-(w as f32)).mul_add(scale, *x)).collect();
        let error = super::dot(&errors, &errors);
        if best.as_ref().is_none_or(|(least, ..)| error < *least) {
            best = Some((error, w, scale));
        }
    }
    let (_, w, scale) = best.expect("eight tries");
    (w, scale)
}

/// The value of largest magnitude, the first of equals, and whether all values are finite.
fn extreme(x: &[f32]) -> (f32, bool) {
    let largest = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let e = x.iter().copied().find(|x| x.abs() == largest).unwrap_or(0.0);
    (e, x.iter().all(|x| x.is_finite()))
}

fn f16(scale: f32) -> f32 {
    let limit = half::f16::MAX.to_f32();
    half::f16::from_f32(scale.clamp(-limit, limit)).to_f32()
}
