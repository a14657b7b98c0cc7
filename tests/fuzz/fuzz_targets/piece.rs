#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| gaterail_tests::fuzzing::piece(data));
