//! The shipped templates on the shipped table: every row renders, into text of the promised size.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use rldp::data::{
    Corpus, CorpusOptions, DataKey, ReadOptions, Template, public_texts, read_bytes, read_table,
};

fn asset(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/assets")
        .join(name)
}

/// Prose without the traces of a phrase that was left out.
fn check_prose(text: &str) {
    for trace in [
        "  ",
        " ,",
        " .",
        "..",
        ",,",
        ", .",
        "?",
        "None",
        "undefined",
        "{",
        "}",
    ] {
        assert!(!text.contains(trace), "`{trace}` in: {text}");
    }
    assert!(text.is_ascii() && text.ends_with('.'), "{text}");
    assert!(
        text.starts_with(|first: char| first.is_ascii_uppercase() || first.is_ascii_digit()),
        "{text}"
    );
}

#[test]
fn every_support2_patient_becomes_a_note() {
    let table = read_table(&asset("support2/support2.csv.gz"), &ReadOptions::default()).unwrap();
    assert_eq!((table.len(), table.columns().len()), (9105, 48));
    let template = Template::from_file(&asset("support2/note.jinja")).unwrap();
    let texts = public_texts(&table, None, Some(&template)).unwrap();
    assert_eq!(texts.len(), 9105);
    let mut words = 0;
    for text in &texts {
        check_prose(text);
        let count = text.split_whitespace().count();
        assert!((40..=90).contains(&count), "{count} words: {text}");
        words += count;
    }
    let mean = words as f64 / texts.len() as f64;
    assert!((60.0..70.0).contains(&mean), "{mean}");
    assert_eq!(
        texts[0],
        "63-year-old man in hospital with lung cancer; history of metastatic cancer; no comorbid conditions. \
         Fully dependent in daily living before admission. Awake and alert, mean blood pressure 97, pulse 69, breathing 22 a minute, \
         temperature 36.0 C. Laboratory: white cells 6.0, creatinine 1.2, sodium 141, bilirubin 0.2, albumin 1.8. \
         No do-not-resuscitate order. He left hospital alive after 5 days and was living at six months."
    );
    let options = CorpusOptions {
        template: Some(template),
        ..CorpusOptions::default()
    };
    let corpus = Corpus::build(&table, &options, &DataKey::from_seed(0)).unwrap();
    assert_eq!(
        corpus.train.len() + corpus.validation.len() + corpus.test.len(),
        9105
    );
    assert_eq!(corpus.units_without_text, 0);
}

/// Made-up encounters with the columns of the Diabetes 130-US hospitals table, the rare paths among them.
const ENCOUNTERS: &str = "\
encounter_id,patient_nbr,race,gender,age,admission_type_id,discharge_disposition_id,admission_source_id,time_in_hospital,medical_specialty,num_lab_procedures,num_procedures,num_medications,number_outpatient,number_emergency,number_inpatient,diag_1,diag_2,diag_3,max_glu_serum,A1Cresult,metformin,repaglinide,glimepiride,glipizide,glyburide,pioglitazone,rosiglitazone,insulin,diabetesMed,readmitted
1,1,Caucasian,Female,[70-80),1,1,7,4,Cardiology,45,1,13,0,0,2,428,401,250.02,None,>8,Steady,No,No,No,No,No,No,Up,Yes,<30
2,2,?,Male,[0-10),6,11,17,1,?,1,0,1,0,0,0,?,?,?,>300,Norm,No,No,No,No,No,No,No,No,No,NO
3,3,Other,Unknown/Invalid,[20-30),3,7,1,2,Oncology,3,2,5,1,1,0,V57,E885,?,Norm,None,No,No,No,No,No,No,No,No,Yes,>30
4,4,Asian,Male,[50-60),2,25,4,3,?,9,0,8,0,0,0,250.6,788,999,None,None,No,Down,No,No,Up,No,No,Steady,Yes,NO
";

#[test]
fn diabetes_encounters_become_notes() {
    let table = read_bytes(
        "encounters.csv",
        ENCOUNTERS.as_bytes(),
        &ReadOptions::default(),
    )
    .unwrap();
    let template = Template::from_file(&asset("templates/diabetes130.jinja")).unwrap();
    let texts = public_texts(&table, None, Some(&template)).unwrap();
    texts.iter().for_each(|text| check_prose(text));
    assert_eq!(
        texts,
        [
            "White woman aged 70 to 80, admitted as an emergency through the emergency room under cardiology for heart failure, with high \
             blood pressure and diabetes. Stayed 4 days: 45 lab tests, 1 procedure, 13 medicines. A1c above 8. Diabetes drugs: insulin raised, \
             metformin kept. Visits in the year before: 2 inpatient. She was discharged home, readmitted within 30 days.",
            "Man aged 0 to 10, admitted. Stayed 1 day: 1 lab test, 1 medicine. A1c normal. Glucose above 300. No diabetes drugs. He died.",
            "Woman aged 20 to 30, admitted by plan on referral for rehabilitation, with an external cause. Stayed 2 days: 3 lab tests, \
             2 procedures, 5 medicines. Glucose normal. Visits in the year before: 1 emergency, 1 outpatient. She left against advice, readmitted after 30 days.",
            "Asian man aged 50 to 60, admitted urgently from another hospital for diabetes with nerve damage, with urinary disease and an injury. \
             Stayed 3 days: 9 lab tests, 8 medicines. Diabetes drugs: insulin kept, glyburide raised, repaglinide lowered. He was discharged, not readmitted.",
        ]
    );
}
