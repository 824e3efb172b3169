//! Paired differences: what two tors took within the same slots, and how much that differs.

use serde::Serialize;

use super::percentile::{mean, percentile, sorted};

/// A paired difference, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The mean of A − B.
    pub mean_ms: f64,
    /// The median of A − B.
    pub median_ms: f64,
    /// The 95 % confidence interval of the mean, by Student's t; absent with fewer than two slots.
    pub confidence_95_ms: Option<[f64; 2]>,
    /// The median through A.
    pub median_a_ms: f64,
    /// The median through B.
    pub median_b_ms: f64,
}

impl Difference {
    /// Of these pairs of A and B, in milliseconds; `None` where there is none.
    pub fn of(pairs: &[(f64, f64)]) -> Option<Self> {
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| a - b).collect();
        let mean_ms = mean(&differences)?;
        Some(Difference {
            mean_ms,
            confidence_95_ms: half_width(&differences, mean_ms).map(|half| [mean_ms - half, mean_ms + half]),
            median_ms: median(differences)?,
            median_a_ms: median(pairs.iter().map(|(a, _)| *a).collect())?,
            median_b_ms: median(pairs.iter().map(|(_, b)| *b).collect())?,
        })
    }
}

fn median(values: Vec<f64>) -> Option<f64> {
    percentile(&sorted(values), 0.5)
}

/// Half of the mean's 95 % confidence interval; `None` with fewer than two values.
fn half_width(values: &[f64], mean: f64) -> Option<f64> {
    let freedom = values.len().checked_sub(1).filter(|freedom| *freedom > 0)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    let standard_error = (squares / freedom as f64 / values.len() as f64).sqrt();
    Some(student_t_975(freedom) * standard_error)
}

/// The 97.5 % quantile of Student's t with 1 to 10 degrees of freedom.
const FIRST_TEN: [f64; 10] =
    [12.706_205, 4.302_653, 3.182_446, 2.776_445, 2.570_582, 2.446_912, 2.364_624, 2.306_004, 2.262_157, 2.228_139];

/// The same of the normal distribution.
const NORMAL_975: f64 = 1.959_963_985;

/// The 97.5 % quantile of Student's t: from the table, and beyond it by the expansion of Cornish and Fisher
/// around the normal distribution's (Abramowitz and Stegun, 26.7.5), which is right to four decimals there.
fn student_t_975(freedom: usize) -> f64 {
    if let Some(known) = freedom.checked_sub(1).and_then(|at| FIRST_TEN.get(at)) {
        return *known;
    }
    let (z, n) = (NORMAL_975, freedom as f64);
    let g1 = (z.powi(3) + z) / 4.0;
    let g2 = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    let g4 = (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5) - 1920.0 * z.powi(3) - 945.0 * z) / 92_160.0;
    z + g1 / n + g2 / n.powi(2) + g3 / n.powi(3) + g4 / n.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tables of the distribution.
    #[test]
    fn quantiles_are_students() {
        for (freedom, known) in [
            (1, 12.7062),
            (2, 4.3027),
            (5, 2.5706),
            (10, 2.2281),
            (11, 2.2010),
            (12, 2.1788),
            (15, 2.1314),
            (20, 2.0860),
            (30, 2.0423),
            (60, 2.0003),
            (120, 1.9799),
            (1000, 1.9623),
            (1_000_000, 1.9600),
        ] {
            let found = student_t_975(freedom);
            assert!((found - known).abs() < 0.000_06, "{freedom}: {found}");
        }
    }

    #[test]
    fn the_interval_is_students() {
        // 10, 20 and 30: the standard deviation is 10, so half of the interval is 4.302653 · 10 / √3.
        let found = Difference::of(&[(110.0, 100.0), (220.0, 200.0), (330.0, 300.0)]).unwrap();
        let [low, high] = found.confidence_95_ms.unwrap();
        assert!((low - -4.841_38).abs() < 1e-4 && (high - 44.841_38).abs() < 1e-4, "{low} {high}");
        assert_eq!((found.mean_ms, found.median_ms, found.median_a_ms, found.median_b_ms), (20.0, 20.0, 220.0, 200.0));
        // Two in the middle: their mean.
        assert_eq!(Difference::of(&[(1.0, 0.0), (4.0, 0.0)]).unwrap().median_ms, 2.5);
        assert_eq!(Difference::of(&[(3.0, 1.0)]).unwrap().confidence_95_ms, None);
        assert_eq!(Difference::of(&[]), None);
    }
}
