//! Any bytes as a ledger: read, accounted and resumed without a panic, and resumption never counts less.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rldp_accounting::ledger::{Ledger, LedgerWriter};

fuzz_target!(|bytes: &[u8]| {
    let file = std::env::temp_dir().join(format!("rldp-fuzz-ledger-{}", std::process::id()));
    std::fs::write(&file, bytes).expect("the temporary folder can be written");
    let _ = Ledger::begun(&file);
    if let Ok(ledger) = Ledger::read(&file) {
        // Accounting of a thousand segments takes seconds and is tried elsewhere.
        let in_doubt = ledger.in_doubt();
        if let Ok(in_doubt) = in_doubt
            && let Ok((_, resumed)) = LedgerWriter::resume(&file, &ledger.header, &in_doubt)
        {
            assert!(resumed.torn.is_none());
            assert!(resumed.steps() >= ledger.steps());
            let again = Ledger::read(&file).expect("a resumed ledger can be read");
            assert_eq!(again, resumed);
        }
    }
});
