//! Our codec for those of other languages to be compared with; tests/test_wire_codec.py does.
//!
//! A line of `KIND HEX` is decoded and encoded again: a line of JSON comes back, `{"fields": ..., "hex": ...}` or
//! `{"error": ...}`. The line `samples COUNT` brings so many random messages, always the same, with their kind.
#![allow(clippy::print_stdout)] // It is how it answers.

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::BufRead;

use common::samples::any_sample;
use common::{hex, recode, unhex};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::json;

fn main() -> std::io::Result<()> {
    let mut runner = TestRunner::deterministic();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
        if kind == "samples" {
            for _ in 0..rest.parse::<usize>().unwrap_or(0) {
                let tree = any_sample().new_tree(&mut runner);
                let sample = tree
                    .map_err(|reason| std::io::Error::other(reason.to_string()))?
                    .current();
                let bytes = hex(&sample.bytes);
                println!(
                    "{}",
                    json!({"kind": sample.kind, "fields": sample.fields, "hex": bytes})
                );
            }
            continue;
        }
        let answer = match recode(kind, &unhex(rest)) {
            Ok(message) => json!({"fields": message.fields, "hex": hex(&message.bytes)}),
            Err(error) => json!({"error": error.to_string()}),
        };
        println!("{answer}");
    }
    Ok(())
}
