//! Invented patients: one severity drives vital signs, laboratory values, length of stay and outcome, all from textbook
//! ranges, so that the clinical part of the corpus is coherent. No figure here was fitted to any data set.

use crate::pretrain::grammar::Variables;
use crate::pretrain::random::CorpusRandom;

/// A kind of illness and what it does to a patient.
struct Illness {
    names: &'static [&'static str],
    symptoms: &'static [&'static str],
    /// Range of severity, within 0 (well) to 1 (dying).
    severity: (f64, f64),
    mean_age: f64,
    infection: f64,
    lungs: f64,
    kidneys: f64,
    liver: f64,
    brain: f64,
    circulation: f64,
}

/// An illness that touches nothing; the table below names what differs.
const NONE: Illness = Illness {
    names: &[],
    symptoms: &[],
    severity: (0.0, 0.6),
    mean_age: 62.0,
    infection: 0.05,
    lungs: 0.05,
    kidneys: 0.1,
    liver: 0.03,
    brain: 0.03,
    circulation: 0.1,
};

const ILLNESSES: &[Illness] = &[
    Illness {
        names: &[
            "pneumonia",
            "pneumonia of the right lower lobe",
            "community acquired pneumonia",
            "severe pneumonia with respiratory failure",
            "bilateral pneumonia",
        ],
        symptoms: &[
            "fever",
            "cough",
            "breathlessness",
            "chest pain on breathing",
            "yellow sputum",
        ],
        severity: (0.1, 0.8),
        infection: 0.9,
        lungs: 0.8,
        ..NONE
    },
    Illness {
        names: &[
            "septic shock",
            "sepsis",
            "sepsis from a urinary infection",
            "sepsis with acute renal failure",
            "multiple organ failure with sepsis",
            "abdominal sepsis",
        ],
        symptoms: &[
            "fever",
            "confusion",
            "shaking chills",
            "low blood pressure",
            "abdominal pain",
        ],
        severity: (0.35, 1.0),
        infection: 1.0,
        lungs: 0.6,
        kidneys: 0.8,
        liver: 0.3,
        brain: 0.4,
        circulation: 1.0,
        ..NONE
    },
    Illness {
        names: &[
            "congestive heart failure",
            "acute heart failure",
            "worsening of chronic heart failure",
            "heart failure after a myocardial infarction",
            "cardiomyopathy",
        ],
        symptoms: &[
            "breathlessness",
            "swollen legs",
            "chest tightness",
            "tiredness",
            "breathlessness at night",
        ],
        mean_age: 70.0,
        severity: (0.1, 0.8),
        lungs: 0.4,
        kidneys: 0.5,
        circulation: 0.6,
        ..NONE
    },
    Illness {
        names: &[
            "chronic obstructive pulmonary disease",
            "an exacerbation of COPD",
            "emphysema with respiratory failure",
            "acute respiratory failure",
            "COPD with infection",
        ],
        symptoms: &[
            "breathlessness",
            "wheeze",
            "cough",
            "sputum",
            "poor exercise tolerance",
        ],
        mean_age: 68.0,
        severity: (0.1, 0.8),
        infection: 0.4,
        lungs: 0.9,
        ..NONE
    },
    Illness {
        names: &[
            "cirrhosis",
            "cirrhosis of the liver with ascites",
            "liver failure",
            "alcoholic cirrhosis",
            "variceal bleeding in cirrhosis",
        ],
        symptoms: &[
            "jaundice",
            "a swollen abdomen",
            "confusion",
            "vomiting of blood",
            "weakness",
        ],
        mean_age: 54.0,
        severity: (0.2, 0.95),
        kidneys: 0.5,
        liver: 1.0,
        brain: 0.4,
        circulation: 0.4,
        ..NONE
    },
    Illness {
        names: &[
            "lung cancer",
            "colon cancer",
            "metastatic breast cancer",
            "colon cancer with liver metastases",
            "lung cancer that has spread to the bone",
            "lymphoma",
        ],
        symptoms: &[
            "weight loss",
            "pain",
            "loss of appetite",
            "bleeding",
            "tiredness",
        ],
        severity: (0.1, 0.8),
        liver: 0.25,
        lungs: 0.3,
        ..NONE
    },
    Illness {
        names: &[
            "stroke",
            "coma after cardiac arrest",
            "a brain haemorrhage",
            "coma of unknown cause",
            "a head injury",
            "meningitis",
        ],
        symptoms: &[
            "loss of consciousness",
            "weakness of one side",
            "severe headache",
            "a seizure",
            "slurred speech",
        ],
        severity: (0.25, 1.0),
        brain: 1.0,
        lungs: 0.4,
        ..NONE
    },
    Illness {
        names: &[
            "acute renal failure",
            "chronic kidney disease",
            "acute kidney injury after surgery",
            "renal failure needing dialysis",
        ],
        symptoms: &[
            "nausea",
            "little urine",
            "swollen legs",
            "itching",
            "vomiting",
        ],
        severity: (0.1, 0.8),
        kidneys: 1.0,
        ..NONE
    },
    Illness {
        names: &[
            "a hip fracture",
            "a broken ankle",
            "a fall at home",
            "an inguinal hernia",
            "gallstones",
            "appendicitis",
            "a deep vein thrombosis",
        ],
        symptoms: &[
            "pain",
            "a swollen leg",
            "nausea",
            "pain after a fall",
            "abdominal pain",
        ],
        severity: (0.0, 0.35),
        infection: 0.2,
        ..NONE
    },
    Illness {
        names: &[
            "myocardial infarction",
            "chest pain",
            "atrial fibrillation",
            "unstable angina",
            "a gastrointestinal bleed",
            "anaemia",
            "a diabetic ulcer",
            "asthma",
            "diabetic ketoacidosis",
        ],
        symptoms: &[
            "chest pain",
            "palpitations",
            "dizziness",
            "sweating",
            "breathlessness",
            "weakness",
        ],
        severity: (0.05, 0.6),
        circulation: 0.5,
        ..NONE
    },
];

const COMORBIDITIES: &[&str] = &[
    "diabetes",
    "hypertension",
    "high blood pressure",
    "dementia",
    "asthma",
    "chronic kidney disease",
    "coronary heart disease",
    "depression",
    "arthritis",
    "atrial fibrillation",
    "obesity",
    "hypothyroidism",
    "an old stroke",
    "skin cancer",
    "kidney stones",
    "gout",
    "osteoporosis",
    "epilepsy",
    "alcohol abuse",
    "chronic bronchitis",
    "metastatic cancer",
    "anaemia",
    "a hip replacement",
    "peptic ulcer",
    "glaucoma",
    "peripheral vascular disease",
];

fn grade(severity: f64, words: [&'static str; 4]) -> &'static str {
    words[((severity * 4.0) as usize).min(3)]
}

/// Draws a patient and binds every variable that `clinical.txt` refers to.
pub fn bind_case(variables: &mut Variables, random: &mut CorpusRandom) {
    let illness = random.pick(ILLNESSES);
    let severity = illness.severity.0 + random.unit() * (illness.severity.1 - illness.severity.0);
    let mut set = |name: &str, value: String| {
        variables.insert(name.to_owned(), value);
    };
    bind_person(illness, random, &mut set);
    bind_words(illness, severity, random, &mut set);
    bind_measurements(illness, severity, random, &mut set);
    bind_outcome(severity, random, &mut set);
}

fn bind_person(illness: &Illness, random: &mut CorpusRandom, set: &mut impl FnMut(&str, String)) {
    let woman = random.chance(0.5);
    let words = if woman {
        ["woman", "female", "she", "her", "husband", "Mrs"]
    } else {
        ["man", "male", "he", "his", "wife", "Mr"]
    };
    for (name, word) in ["sex", "gender", "he", "his", "spouse", "title"]
        .into_iter()
        .zip(words)
    {
        set(name, word.to_owned());
    }
    let age = random
        .bell(illness.mean_age, 15.0)
        .clamp(18.0, 97.0)
        .round();
    // "an 80 year old", "an 18 year old", else "a".
    set(
        "article",
        if age == 18.0 || (80.0..90.0).contains(&age) {
            "an"
        } else {
            "a"
        }
        .to_owned(),
    );
    set("age", format!("{age:.0}"));
    set(
        "height",
        format!("{:.0}", random.bell(if woman { 163.0 } else { 176.0 }, 7.0)),
    );
    set(
        "weight",
        format!(
            "{:.0}",
            random.bell(if woman { 68.0 } else { 80.0 }, 14.0).max(38.0)
        ),
    );
    set("education", format!("{}", 6 + random.below(14)));
}

fn bind_words(
    illness: &Illness,
    severity: f64,
    random: &mut CorpusRandom,
    set: &mut impl FnMut(&str, String),
) {
    set("dx", (*random.pick(illness.names)).to_owned());
    let first = random.below(illness.symptoms.len() as u64) as usize;
    let step = 1 + random.below(illness.symptoms.len() as u64 - 1) as usize;
    set("symptom", illness.symptoms[first].to_owned());
    set(
        "symptom2",
        illness.symptoms[(first + step) % illness.symptoms.len()].to_owned(),
    );
    let start = random.below(COMORBIDITIES.len() as u64) as usize;
    for (index, name) in ["comorbidity1", "comorbidity2", "comorbidity3"]
        .into_iter()
        .enumerate()
    {
        set(
            name,
            COMORBIDITIES[(start + index * 7) % COMORBIDITIES.len()].to_owned(),
        );
    }
    set("number_of_conditions", format!("{}", 2 + random.below(6)));
    let conditions = [
        ["stable", "doing well", "comfortable"],
        ["fairly well", "moderately ill", "stable"],
        ["seriously ill", "unstable", "very ill"],
        ["critically ill", "in a critical condition", "gravely ill"],
    ];
    set(
        "severity_word",
        (*random.pick(&conditions[((severity * 4.0) as usize).min(3)])).to_owned(),
    );
    let better = random.chance(0.9 - 0.7 * severity);
    set(
        "trend_word",
        (*random.pick(if better {
            &["improving", "getting better", "slightly better"]
        } else {
            &["getting worse", "not improving", "unchanged"]
        }))
        .to_owned(),
    );
    set(
        "trend_noun",
        (*random.pick(if better {
            &["an improvement", "good progress"]
        } else {
            &["no improvement", "a decline"]
        }))
        .to_owned(),
    );
    set(
        "outlook_word",
        grade(severity, ["good", "fair", "guarded", "poor"]).to_owned(),
    );
    set(
        "adl",
        format!(
            "{}",
            ((severity * 7.0 * random.unit() * 1.4).round() as u64).min(7)
        ),
    );
}

fn bind_measurements(
    illness: &Illness,
    severity: f64,
    random: &mut CorpusRandom,
    set: &mut impl FnMut(&str, String),
) {
    let s = severity;
    let heart_rate = random
        .bell(
            76.0 + 45.0 * s * (0.4 + 0.6 * illness.circulation.max(illness.infection)),
            13.0,
        )
        .clamp(38.0, 185.0);
    let pressure = random
        .bell(93.0 - 34.0 * s * illness.circulation, 11.0)
        .clamp(38.0, 145.0);
    let pulse_pressure = random.bell(48.0, 9.0).max(18.0);
    let breaths = random
        .bell(15.0 + 17.0 * s * (0.3 + 0.7 * illness.lungs), 3.0)
        .clamp(8.0, 48.0);
    let temperature = random
        .bell(36.7 + 1.7 * illness.infection * (0.3 + s), 0.45)
        .clamp(34.0, 41.2);
    let saturation = random
        .bell(97.5 - 11.0 * s * illness.lungs, 1.2)
        .clamp(70.0, 100.0);
    let white_cells = (random.bell(1.95 + 0.9 * illness.infection * (0.3 + s), 0.35))
        .exp()
        .clamp(0.6, 60.0);
    let creatinine = random
        .bell(-0.12 + 1.9 * illness.kidneys * s, 0.28)
        .exp()
        .clamp(0.4, 14.0);
    let urea = (14.0 * creatinine.powf(0.85) * random.bell(1.0, 0.2)).clamp(4.0, 170.0);
    let albumin = random
        .bell(4.1 - 1.3 * s - 0.7 * illness.liver, 0.35)
        .clamp(1.2, 5.2);
    let bilirubin = random
        .bell(-0.5 + 3.2 * illness.liver * s, 0.4)
        .exp()
        .clamp(0.2, 38.0);
    let ph = random
        .bell(
            7.41 - 0.11 * s * (illness.circulation.max(illness.kidneys)),
            0.035,
        )
        .clamp(6.9, 7.6);
    let oxygenation = random
        .bell(420.0 - 330.0 * s.max(0.2) * illness.lungs, 45.0)
        .clamp(48.0, 560.0);
    let lactate = random
        .bell(0.1 + 1.9 * s * illness.circulation, 0.3)
        .exp()
        .clamp(0.4, 18.0);
    let coma = (15.0 - 13.0 * s * illness.brain * (0.6 + 0.5 * random.unit()))
        .round()
        .clamp(3.0, 15.0);
    let urine = random
        .bell(1900.0 - 1500.0 * s * illness.kidneys, 420.0)
        .max(20.0);

    let later = |value: f64, random: &mut CorpusRandom| value * random.bell(0.96 + 0.1 * s, 0.08);
    for (name, value, decimals) in [
        ("hr", heart_rate, 0),
        ("hr2", later(heart_rate, random), 0),
        ("map", pressure, 0),
        ("sbp", pressure + pulse_pressure * 2.0 / 3.0, 0),
        ("dbp", pressure - pulse_pressure / 3.0, 0),
        ("rr", breaths, 0),
        ("temp", temperature, 1),
        (
            "temp2",
            (temperature + random.bell(0.0, 0.3)).clamp(34.0, 41.5),
            1,
        ),
        ("spo2", saturation, 0),
        ("wbc", white_cells, 1),
        ("wbc2", later(white_cells, random), 1),
        ("hb", random.bell(13.4 - 3.2 * s, 1.4).clamp(4.5, 18.0), 1),
        (
            "plt",
            random
                .bell(255.0 - 120.0 * s * (0.3 + illness.liver), 60.0)
                .clamp(8.0, 700.0),
            0,
        ),
        ("na", random.bell(139.0 - 3.0 * s * illness.liver, 3.4), 0),
        (
            "k",
            random
                .bell(4.1 + 0.7 * s * illness.kidneys, 0.45)
                .clamp(2.3, 7.2),
            1,
        ),
        ("creat", creatinine, 1),
        ("creat2", later(creatinine, random), 1),
        ("bun", urea, 0),
        ("gluc", random.bell(4.75 + 0.4 * s, 0.25).exp(), 0),
        ("alb", albumin, 1),
        ("bili", bilirubin, 1),
        ("ph", ph, 2),
        ("pf", oxygenation, 0),
        ("lactate", lactate, 1),
        ("gcs", coma, 0),
        ("coma_score", ((15.0 - coma) / 12.0 * 100.0).round(), 0),
        ("urine", (urine / 10.0).round() * 10.0, 0),
        ("apache", 6.0 + 70.0 * s * random.bell(1.0, 0.15), 0),
    ] {
        set(name, format!("{value:.decimals$}"));
    }
    let word = |name: &str,
                value: f64,
                low: f64,
                high: f64,
                words: [&str; 3],
                set: &mut dyn FnMut(&str, String)| {
        set(
            name,
            words[usize::from(value >= low) + usize::from(value > high)].to_owned(),
        );
    };
    word(
        "hr_word",
        heart_rate,
        60.0,
        100.0,
        ["bradycardic", "regular", "tachycardic"],
        set,
    );
    word(
        "map_word",
        pressure,
        65.0,
        110.0,
        ["hypotensive", "normotensive", "hypertensive"],
        set,
    );
    word(
        "temp_word",
        temperature,
        36.0,
        38.0,
        ["cool", "afebrile", "febrile"],
        set,
    );
    word(
        "creat_word",
        creatinine,
        0.6,
        1.25,
        ["low", "normal", "raised"],
        set,
    );
    word(
        "bili_word",
        bilirubin,
        0.2,
        1.2,
        ["low", "normal", "high"],
        set,
    );
    word(
        "wbc_word",
        white_cells,
        4.0,
        11.0,
        ["low", "normal", "high"],
        set,
    );
    word(
        "ph_word",
        ph,
        7.35,
        7.45,
        ["an acidosis", "in the normal range", "an alkalosis"],
        set,
    );
    word(
        "pf_word",
        oxygenation,
        200.0,
        300.0,
        [
            "severe lung injury",
            "acute lung injury",
            "adequate oxygenation",
        ],
        set,
    );
    word(
        "mental_state",
        coma,
        8.5,
        13.5,
        ["in coma", "drowsy and confused", "awake and alert"],
        set,
    );
}

fn bind_outcome(severity: f64, random: &mut CorpusRandom, set: &mut impl FnMut(&str, String)) {
    let days = random
        .bell(1.4 + 1.5 * severity, 0.6)
        .exp()
        .clamp(1.0, 150.0)
        .round()
        .max(2.0);
    set("days", format!("{days:.0}"));
    set("hospital_day", format!("{}", 1 + random.below(days as u64)));
    set("icu_day", format!("{}", 2 + random.below(12)));
    set(
        "cost",
        format!(
            "{:.0}",
            ((days * (700.0 + 2600.0 * severity * random.unit())) / 10.0).round() * 10.0
        ),
    );
    set(
        "survival",
        format!(
            "{:.0}",
            (97.0 - 85.0 * severity * random.bell(1.0, 0.15)).clamp(1.0, 99.0)
        ),
    );
    let (outcome, status) = if random.chance(0.75 * severity * severity) {
        (
            [
                "the patient died in hospital.",
                "death followed on the ward.",
                "the patient passed away in intensive care.",
                "the patient died of multiple organ failure.",
                "treatment was withdrawn and the patient died.",
            ][random.below(5) as usize],
            ["died", "died in hospital", "dead"][random.below(3) as usize],
        )
    } else {
        (
            [
                "the patient was discharged home.",
                "the patient went home in good condition.",
                "the patient was transferred to a rehabilitation unit.",
                "the patient left hospital alive.",
                "the patient was discharged to a nursing home.",
                "the patient survived and was followed up in clinic.",
            ][random.below(6) as usize],
            ["alive", "discharged home", "survived", "transferred"][random.below(4) as usize],
        )
    };
    set("outcome", outcome.to_owned());
    set("status", status.to_owned());
}
