//! SUPPORT2 as numbers: what was known of a patient on the third day, and whether the patient died in hospital.

use burn::tensor::{Device, Tensor, TensorData};

use crate::embedded::support2;
use crate::error::ExampleError;

/// Columns with a centre and a scale. Textbook figures, not statistics of these patients: a mean taken from the table would be
/// one more thing released about the people in it.
const MEASUREMENTS: &[(&str, f32, f32)] = &[
    ("age", 65.0, 15.0),
    ("num.co", 2.0, 1.5),
    ("scoma", 20.0, 30.0),
    ("avtisst", 20.0, 15.0),
    ("diabetes", 0.0, 1.0),
    ("dementia", 0.0, 1.0),
    ("meanbp", 90.0, 25.0),
    ("wblc", 10.0, 8.0),
    ("hrt", 90.0, 30.0),
    ("resp", 20.0, 10.0),
    ("temp", 37.0, 1.0),
    ("pafi", 300.0, 120.0),
    ("alb", 3.5, 1.0),
    ("bili", 1.0, 4.0),
    ("crea", 1.2, 1.5),
    ("sod", 140.0, 6.0),
    ("ph", 7.4, 0.08),
    ("bun", 20.0, 25.0),
    ("urine", 2000.0, 1500.0),
];

/// Columns of text, with the values that become a number of their own.
const KINDS: &[(&str, &[&str])] = &[
    (
        "dzclass",
        &["ARF/MOSF", "COPD/CHF/Cirrhosis", "Cancer", "Coma"],
    ),
    ("ca", &["yes", "metastatic"]),
];

/// Inputs and outcomes of patients, one row each.
pub struct Patients {
    features: Vec<f32>,
    deaths: Vec<f32>,
}

impl Patients {
    /// All 9,105 patients of the embedded table. A missing measurement counts as the centre, and all are cut off at three scales.
    ///
    /// # Errors
    /// Only if the embedded table is damaged.
    pub fn load() -> Result<Self, ExampleError> {
        let table = support2()?;
        let number = |row: usize, name: &str| {
            let column = table.column_index(name)?;
            table.cell(row, column).parse::<f32>().ok()
        };
        let mut patients = Self {
            features: Vec::with_capacity(table.len() * Self::features()),
            deaths: Vec::with_capacity(table.len()),
        };
        for row in 0..table.len() {
            for &(name, centre, scale) in MEASUREMENTS {
                let value = number(row, name).map_or(0.0, |value| (value - centre) / scale);
                patients.features.push(value.clamp(-3.0, 3.0));
            }
            for &(name, kinds) in KINDS {
                let cell = table
                    .column_index(name)
                    .map_or("", |column| table.cell(row, column));
                let kinds = kinds.iter();
                patients
                    .features
                    .extend(kinds.map(|&kind| f32::from(u8::from(kind == cell))));
            }
            patients.deaths.push(number(row, "hospdead").unwrap_or(0.0));
        }
        Ok(patients)
    }

    /// Numbers per patient.
    #[must_use]
    pub fn features() -> usize {
        MEASUREMENTS.len() + KINDS.iter().map(|(_, kinds)| kinds.len()).sum::<usize>()
    }

    /// Splits off every fifth patient, to be held out: training part, held-out part.
    #[must_use]
    pub fn split(self) -> (Self, Self) {
        let empty = || Self {
            features: Vec::new(),
            deaths: Vec::new(),
        };
        let (mut training, mut held_out) = (empty(), empty());
        let rows = self.features.chunks(Self::features()).zip(&self.deaths);
        for (index, (features, &death)) in rows.enumerate() {
            let part = if index % 5 == 4 {
                &mut held_out
            } else {
                &mut training
            };
            part.features.extend(features);
            part.deaths.push(death);
        }
        (training, held_out)
    }

    /// Number of patients.
    #[must_use]
    pub fn len(&self) -> usize {
        self.deaths.len()
    }

    /// Whether there is no patient.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.deaths.is_empty()
    }

    /// One if the patient died in hospital.
    #[must_use]
    pub fn deaths(&self) -> &[f32] {
        &self.deaths
    }

    /// Inputs and outcomes of these patients, `[rows, features]` and `[rows]`.
    #[must_use]
    pub fn rows(&self, rows: &[usize], device: &Device) -> (Tensor<2>, Tensor<1>) {
        let width = Self::features();
        let features: Vec<f32> = rows
            .iter()
            .flat_map(|&row| &self.features[row * width..(row + 1) * width])
            .copied()
            .collect();
        let deaths: Vec<f32> = rows.iter().map(|&row| self.deaths[row]).collect();
        (
            Tensor::from_data(TensorData::new(features, [rows.len(), width]), device),
            Tensor::from_data(TensorData::new(deaths, [rows.len()]), device),
        )
    }
}

/// Area under the ROC curve: the chance that a patient who died has the higher score than one who did not, ties counting half.
#[must_use]
pub fn area_under_curve(scores: &[f32], outcomes: &[f32]) -> f64 {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    let (mut below, mut pairs, mut start) = (0.0, 0.0, 0);
    while start < order.len() {
        let tied = |&&index: &&usize| scores[index].total_cmp(&scores[order[start]]).is_eq();
        let end = start + order[start..].iter().take_while(tied).count();
        let died: f64 = order[start..end]
            .iter()
            .map(|&index| f64::from(outcomes[index]))
            .sum();
        let lived = (end - start) as f64 - died;
        pairs += died * (below + 0.5 * lived);
        below += lived;
        start = end;
    }
    let died = scores.len() as f64 - below;
    pairs / (died * below)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_patient_is_in_one_part() {
        let all = Patients::load().unwrap();
        let (total, deaths) = (all.len(), all.deaths().iter().sum::<f32>());
        assert_eq!((total, deaths), (9105, 2360.0));
        let (training, held_out) = all.split();
        assert_eq!(training.len() + held_out.len(), total);
        assert_eq!(held_out.len(), total / 5);
        let (features, outcomes) = held_out.rows(&[0, 3], &Device::default());
        assert_eq!(features.dims(), [2, Patients::features()]);
        assert_eq!(outcomes.dims(), [2]);
    }

    #[test]
    fn areas_are_those_of_pairs() {
        let outcomes = [0.0, 1.0, 0.0, 1.0];
        assert_eq!(area_under_curve(&[0.1, 0.9, 0.2, 0.8], &outcomes), 1.0);
        assert_eq!(area_under_curve(&[0.9, 0.1, 0.8, 0.2], &outcomes), 0.0);
        assert_eq!(area_under_curve(&[0.5; 4], &outcomes), 0.5);
        // Of four pairs, three are right and one is tied.
        assert_eq!(area_under_curve(&[0.3, 0.3, 0.1, 0.4], &outcomes), 0.875);
    }
}
