//! One quantity with Conflux and without, side by side.

use serde::Serialize;

use super::percentile::{Floor, Summary, sorted};
use super::quantity::Unit;
use super::{End, Quantity, Sample};

/// One quantity of runs over two linked circuits, and of runs over one.
///
/// The runs were not paired: who had which was tor's choice, and other things may differ along with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What is compared.
    pub quantity: Quantity,
    /// What its values are in.
    pub unit: Unit,
    /// Over two linked circuits.
    pub with: Side,
    /// Over one.
    pub without: Side,
    /// Runs of which it is not known; they are on neither side.
    pub unknown: u64,
    /// The median with Conflux less the one without; absent where one of them is.
    pub median_difference: Option<f64>,
}

/// One side of the comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Side {
    /// How many runs.
    pub runs: u64,
    /// Of these, complete ones.
    pub complete: u64,
    /// The quantity's values.
    pub values: Summary,
}

/// Gathers one quantity on two sides.
#[derive(Clone, Debug)]
pub struct WithAndWithout {
    quantity: Quantity,
    with: Gathered,
    without: Gathered,
    unknown: u64,
}

#[derive(Clone, Debug, Default)]
struct Gathered {
    runs: u64,
    complete: u64,
    values: Vec<f64>,
}

impl WithAndWithout {
    /// With nothing in it yet.
    pub fn new(quantity: Quantity) -> Self {
        WithAndWithout { quantity, with: Gathered::default(), without: Gathered::default(), unknown: 0 }
    }

    /// Takes a sample in, which must have its circuit. Comparing makes sense of runs of one size alone.
    pub fn add(&mut self, sample: &Sample) {
        let side = match sample.circuit.as_ref().and_then(|circuit| circuit.conflux) {
            Some(true) => &mut self.with,
            Some(false) => &mut self.without,
            None => {
                self.unknown += 1;
                return;
            }
        };
        side.runs += 1;
        side.complete += u64::from(sample.end == End::Complete);
        side.values.extend(self.quantity.value(sample));
    }

    /// The comparison.
    pub fn finish(self, floor: Floor) -> Comparison {
        let side = |gathered: Gathered| Side {
            runs: gathered.runs,
            complete: gathered.complete,
            values: Summary::of(&sorted(gathered.values), floor),
        };
        let (with, without) = (side(self.with), side(self.without));
        let median_difference = with.values.p50.zip(without.values.p50).map(|(with, without)| with - without);
        Comparison {
            quantity: self.quantity,
            unit: self.quantity.unit(),
            with,
            without,
            unknown: self.unknown,
            median_difference,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::SampleCircuit;
    use crate::test_support::samples::example_sample;

    #[test]
    fn both_sides_are_told() {
        let mut gathered = WithAndWithout::new(Quantity::TimeToLastByte);
        for (conflux, micros) in [(Some(true), 100_000), (Some(true), 300_000), (Some(false), 500_000), (None, 1)] {
            let mut sample = example_sample();
            sample.steps.data_complete = Some(micros);
            sample.circuit = Some(SampleCircuit { conflux, ..SampleCircuit::default() });
            gathered.add(&sample);
        }
        gathered.add(&Sample { circuit: None, ..example_sample() });
        let usual = gathered.clone().finish(Floor::USUAL);
        assert_eq!((usual.with.values.samples, usual.with.values.p50, usual.median_difference), (2, None, None));
        let found = gathered.finish(Floor::NONE);
        assert_eq!((found.with.runs, found.with.complete, found.without.runs, found.unknown), (2, 2, 1, 2));
        assert_eq!((found.with.values.p50, found.without.values.p50), (Some(200.0), Some(500.0)));
        assert_eq!(found.median_difference, Some(-300.0));
    }
}
