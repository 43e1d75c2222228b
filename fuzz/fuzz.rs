//! Looks for bytes with which a decoder panics: the one that `DECODER` names.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static DECODE: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("DECODER").expect("DECODER names one");
    decoders::ALL.iter().find(|(name, _)| *name == wanted).expect("there is no such decoder").1
});

fuzz_target!(|data: &[u8]| DECODE(data));
